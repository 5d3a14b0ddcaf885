//! MovieLens' ratings: from 3.5 stars on they count; of each user the last fifth by time is held out, at least one.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::path::Path;

use postgres::{Client, Statement};

use crate::support::Sql;

#[derive(Clone, Copy)]
pub struct Rating {
    pub user: i32,
    pub film: i32,
    /// Seconds since 1970.
    pub at: i64,
    pub stars: f64,
}

pub fn read(file: &Path) -> Vec<Rating> {
    let text =
        std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    text.lines()
        .skip(1)
        .map(|line| {
            let fields: Vec<&str> = line.split(',').collect();
            Rating {
                user: fields[0].parse().unwrap(),
                film: fields[1].parse().unwrap(),
                stars: fields[2].parse().unwrap(),
                at: fields[3].parse().unwrap(),
            }
        })
        .collect()
}

/// What was before, and what came after: films of users, in the order of time.
pub struct Cut {
    pub train: BTreeMap<i32, Vec<Rating>>,
    pub test: BTreeMap<i32, Vec<Rating>>,
    pub films: Vec<i32>,
}

/// Ratings that are loaded at once.
const BATCH: usize = 5_000;
/// Users who have fewer films left are not asked for.
const LEAST: usize = 5;

impl Cut {
    pub fn of(ratings: &[Rating]) -> Cut {
        let mut train: BTreeMap<i32, Vec<Rating>> = BTreeMap::new();
        for rating in ratings.iter().filter(|rating| rating.stars >= 3.5) {
            train.entry(rating.user).or_default().push(*rating);
        }
        let films: HashSet<i32> = train.values().flatten().map(|rating| rating.film).collect();
        let mut films: Vec<i32> = films.into_iter().collect();
        films.sort_unstable();
        let mut test = BTreeMap::new();
        for (user, of_user) in &mut train {
            of_user.sort_by_key(|rating| rating.at); // stable: what came at the same time stays in the file's order
            let held = (of_user.len() / 5).max(1);
            test.insert(*user, of_user.split_off(of_user.len() - held));
        }
        Cut { train, test, films }
    }

    /// Users to ask for, and what they are to be listed.
    pub fn cases(&self) -> impl Iterator<Item = (i32, HashSet<i32>)> {
        let enough = self
            .train
            .iter()
            .filter(|(_, of_user)| of_user.len() >= LEAST);
        enough.map(|(user, _)| {
            let held = self.test.get(user).into_iter().flatten();
            (*user, held.map(|rating| rating.film).collect())
        })
    }

    pub fn load(&self, client: &mut Client) {
        load_films(client, &self.films);
        let all: Vec<&Rating> = self.train.values().flatten().collect();
        let insert = Insert::prepare(client);
        for (batch, ratings) in all.chunks(BATCH).enumerate() {
            insert.run(client, batch * BATCH, ratings);
        }
    }

    pub fn train_csv(&self) -> String {
        csv(&self.train)
    }

    pub fn test_csv(&self) -> String {
        csv(&self.test)
    }
}

/// A film's number, title and genres.
pub fn titles(file: &Path) -> Vec<(i32, String)> {
    let text =
        std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let film = |line: &str| {
        let (id, rest) = line.split_once(',').unwrap();
        let (title, genres) = rest.rsplit_once(',').unwrap();
        let title = title.trim_matches('"').replace("\"\"", "\"");
        (
            id.parse().unwrap(),
            format!("{title}\n{}", genres.replace('|', ", ")),
        )
    };
    text.lines().skip(1).map(film).collect()
}

pub fn load_films(client: &mut Client, films: &[i32]) {
    client
        .execute("INSERT INTO film SELECT unnest($1::int[])", &[&films])
        .unwrap();
    client.run("ANALYZE film");
}

/// Ratings into their table.
pub struct Insert(Statement);

impl Insert {
    pub fn prepare(client: &mut Client) -> Insert {
        let sql = "INSERT INTO rating SELECT id, user_id, film_id, to_timestamp(at) FROM unnest($1::int[], $2::int[], $3::int[], $4::float8[]) AS r (id, user_id, film_id, at)";
        Insert(client.prepare(sql).unwrap())
    }

    /// One transaction; the first is called `first`.
    pub fn run(&self, client: &mut Client, first: usize, ratings: &[&Rating]) {
        let of = |field: fn(&Rating) -> i32| -> Vec<i32> {
            ratings.iter().map(|rating| field(rating)).collect()
        };
        let ids: Vec<i32> = (0..ratings.len()).map(|n| (first + n) as i32).collect();
        let times: Vec<f64> = ratings.iter().map(|rating| rating.at as f64).collect();
        let (users, films) = (of(|rating| rating.user), of(|rating| rating.film));
        client
            .execute(&self.0, &[&ids, &users, &films, &times])
            .unwrap();
    }
}

fn csv(ratings: &BTreeMap<i32, Vec<Rating>>) -> String {
    let mut text = String::new();
    for rating in ratings.values().flatten() {
        writeln!(text, "{},{}", rating.user, rating.film).unwrap();
    }
    text
}
