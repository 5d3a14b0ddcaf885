//! What recommend lists for each user, as a whole and by its sources alone; and how good that is.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use postgres::Client;

use crate::ratings::Cut;

const K: usize = 10;
/// Where a source's first ten are to be looked for.
const DEPTH: i32 = 1_000;

#[derive(Clone, Copy)]
pub struct Score {
    pub ndcg: f64,
    pub recall: f64,
}

/// By source and user, the first ten.
pub struct Lists(HashMap<String, BTreeMap<i32, Vec<i32>>>);

impl Lists {
    pub fn ask(client: &mut Client, recommender: &str, cut: &Cut) -> Lists {
        let statement = client
            .prepare(&format!(
                "SELECT r.id, r.rank, s.key, (s.value #>> '{{}}')::int FROM {recommender}_recommend($1::int, k => {DEPTH}) r
                   LEFT JOIN LATERAL jsonb_each(r.reason) s ON (s.value #>> '{{}}')::int <= {K} AND s.key <> 'rest'
                  WHERE r.rank <= {K} OR s.key IS NOT NULL"
            ))
            .unwrap();
        let mut lists: HashMap<String, BTreeMap<i32, Vec<i32>>> = HashMap::new();
        for (user, _) in cut.cases() {
            let mut places: HashMap<String, BTreeMap<i32, i32>> = HashMap::new();
            for row in client.query(&statement, &[&user]).unwrap() {
                let (film, rank): (i32, i32) = (row.get(0), row.get(1));
                if rank <= K as i32 {
                    places
                        .entry("recommend".into())
                        .or_default()
                        .insert(rank, film);
                }
                if let Some(source) = row.get::<_, Option<String>>(2) {
                    places.entry(source).or_default().insert(row.get(3), film);
                }
            }
            for (source, places) in places {
                lists
                    .entry(source)
                    .or_default()
                    .insert(user, places.into_values().collect());
            }
        }
        Lists(lists)
    }

    pub fn sources(&self) -> BTreeSet<String> {
        self.0.keys().cloned().collect()
    }

    pub fn score(&self, source: &str, cut: &Cut) -> Score {
        let (mut ndcg, mut recall, mut users) = (0.0, 0.0, 0);
        let none = Vec::new();
        for (user, wanted) in cut.cases() {
            let list = self.0[source].get(&user).unwrap_or(&none);
            let (of_ndcg, of_recall) = measure(list, &wanted);
            (ndcg, recall, users) = (ndcg + of_ndcg, recall + of_recall, users + 1);
        }
        Score {
            ndcg: ndcg / f64::from(users),
            recall: recall / f64::from(users),
        }
    }
}

fn measure(list: &[i32], wanted: &HashSet<i32>) -> (f64, f64) {
    let gain = |place: usize| 1.0 / (place as f64 + 2.0).log2();
    let hits = (0..list.len().min(K)).filter(|place| wanted.contains(&list[*place]));
    let gains: Vec<f64> = hits.map(gain).collect();
    let ideal: f64 = (0..wanted.len().min(K)).map(gain).sum();
    (
        gains.iter().sum::<f64>() / ideal,
        gains.len() as f64 / wanted.len() as f64,
    )
}
