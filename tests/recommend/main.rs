//! Recommenders: what is declared, what is kept of interactions, what is listed for whom.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

/// A shop: products, events, a recommender.
mod shop;

/// Items found by their vectors.
mod content;

/// create_recommender, drop_recommender: columns that are found, refusals.
mod declaring;

/// forget: a person leaves.
mod forgetting;

/// log_shown, attribution: what was shown, and what has come of it.
mod shown;

/// add_interactions: several tables of interactions.
mod feeding;

/// alter_recommender: what is changed in place, and what follows.
mod altering;

/// What is kept is what a count of the interactions gives.
mod keeping;

/// Many lists of neighbours at once.
mod counting;

/// Vectors of items and of users' interests.
mod interests;

/// Another generation of the items' vectors.
mod rebuilding;

/// recommend, similar, popular.
mod lists;

/// Pages, kinds, explanations and what else a list can be asked.
mod asking;

/// Lists that are ready before they are asked for.
mod caching;

/// What users are like, by a pipeline of theirs.
mod priors;

/// Models.
mod learning;

/// run: models now.
mod running;

/// How good lists are.
mod evaluating;

/// Who may call, and what they see.
mod rights;

/// Keys of all types, names of all kinds, commands on the tables.
mod tables;
