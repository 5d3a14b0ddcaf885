"""Reference implementations beside which recsync's lists are measured: what others would have listed.

Reads who had what before the cut (train.csv: user, item, in the order of time) and after it (test.csv) from a folder, and
prints a line a method: name, NDCG@10, recall@10. Settings come as JSON, the same as recsync's own. It never reads anything of
recsync's.
"""

import csv
import json
import sys
import warnings
from collections import defaultdict

import numpy as np
import scipy.linalg
import scipy.sparse as sparse

warnings.filterwarnings("ignore")
K, LEAST = 10, 5


def read(path):
    items = defaultdict(list)
    with open(path, newline="") as file:
        for user, item in csv.reader(file):
            items[int(user)].append(int(item))
    return items


class Data:
    def __init__(self, folder, history):
        train, test = read(f"{folder}/train.csv"), read(f"{folder}/test.csv")
        items = sorted({item for sets in (train, test) for has in sets.values() for item in has})
        numbers = {item: number for number, item in enumerate(items)}
        self.users = sorted(train)
        self.has = [[numbers[item] for item in train[user]] for user in self.users]
        self.wanted = [{numbers[item] for item in test.get(user, [])} for user in self.users]
        self.count = len(items)
        self.matrix = self.of(self.has)
        self.recent = self.of([has[-history:] for has in self.has])

    def of(self, sets):
        users = [user for user, has in enumerate(sets) for _ in has]
        items = [item for has in sets for item in has]
        return sparse.csr_matrix((np.ones(len(users)), (users, items)), shape=(len(sets), self.count))

    def measure(self, scores):
        """Of all items that a user does not have; equal scores in the order of the items."""
        ndcg, recall = [], []
        for user, has in enumerate(self.has):
            if len(has) < LEAST or not self.wanted[user]:
                continue
            of_user = np.array(scores[user], dtype=float).ravel()
            of_user[has] = -np.inf
            listed = np.argsort(-of_user, kind="stable")[:K]
            gains = [1 / np.log2(place + 2) for place, item in enumerate(listed) if item in self.wanted[user]]
            ideal = sum(1 / np.log2(place + 2) for place in range(min(K, len(self.wanted[user]))))
            ndcg.append(sum(gains) / ideal)
            recall.append(len(gains) / len(self.wanted[user]))
        return np.mean(ndcg), np.mean(recall)


def popularity(data, _):
    return np.tile(np.asarray(data.matrix.sum(axis=0)).ravel(), (len(data.has), 1))


def item_knn(data, settings):
    common = (data.recent.T @ data.recent).toarray()
    users = np.sqrt(np.diag(common))
    alike = common / (np.outer(users, users) + settings["shrinkage"])
    np.fill_diagonal(alike, 0)
    # The nearest of each item, as recsync takes them: those that come later in the order of the items last.
    nearest = np.argsort(-alike, axis=1, kind="stable")[:, : settings["neighbours"]]
    kept = np.zeros_like(alike)
    np.put_along_axis(kept, nearest, np.take_along_axis(alike, nearest, axis=1), axis=1)
    return data.recent @ kept


def ease(data, settings, kept=None):
    gram = (data.matrix.T @ data.matrix).toarray()
    gram[np.diag_indices_from(gram)] += settings["lambda"]
    inverse = scipy.linalg.inv(gram, overwrite_a=True, check_finite=False)
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0)
    if kept:  # of each item the heaviest by which it tells others, as recsync has it
        heaviest = np.argpartition(-np.abs(weights), kept, axis=1)[:, :kept]
        some = np.zeros_like(weights)
        np.put_along_axis(some, heaviest, np.take_along_axis(weights, heaviest, axis=1), axis=1)
        weights = some
    return data.recent @ weights


def als(data, settings, seed):
    from implicit.als import AlternatingLeastSquares

    model = AlternatingLeastSquares(
        factors=settings["width"], regularization=settings["als_lambda"], alpha=settings["alpha"],
        iterations=settings["rounds"], random_state=seed, use_gpu=False, num_threads=2,
    )
    model.fit(data.matrix.astype(np.float32), show_progress=False)
    return model.user_factors @ model.item_factors.T


def bpr(data, seed):
    from implicit.bpr import BayesianPersonalizedRanking

    model = BayesianPersonalizedRanking(factors=64, random_state=seed, use_gpu=False, num_threads=2)
    model.fit(data.matrix.astype(np.float32), show_progress=False)
    return model.user_factors @ model.item_factors.T


def main():
    folder, settings = sys.argv[1], json.loads(sys.argv[2])
    data = Data(folder, settings["history"])
    seeds = range(settings["seeds"])
    methods = {
        "popularity": lambda: data.measure(popularity(data, settings)),
        "item_knn": lambda: data.measure(item_knn(data, settings)),
        "ease": lambda: data.measure(ease(data, settings, settings["weights"])),
        "ease with all weights": lambda: data.measure(ease(data, settings)),
        # What chance makes of the beginning is more than the 2% that is asked about.
        "als": lambda: np.mean([data.measure(als(data, settings, seed)) for seed in seeds], axis=0),
        "bpr": lambda: np.mean([data.measure(bpr(data, seed)) for seed in seeds], axis=0),
    }
    for name, measured in methods.items():
        ndcg, recall = measured()
        print(f"{name},{ndcg:.6f},{recall:.6f}", flush=True)


main()
