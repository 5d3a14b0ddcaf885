//! A shop's catalogue, and a month of changes of it: who writes what when. It knows nothing of recsync.

use fastrand::Rng;

/// Of a hundred changes, those that give a row a text that it has not had yet; those that take the last one back; and
/// those that write what is there already. The others change price and stock.
const NEW: usize = 8;
const REVERTS: usize = 4;
const REPEATS: usize = 4;

/// Words of a description.
const LENGTH: std::ops::Range<usize> = 40..80;

const WORDS: [&str; 32] = [
    "light",
    "running",
    "shoe",
    "for",
    "wet",
    "and",
    "rocky",
    "trails",
    "canvas",
    "jacket",
    "waterproof",
    "mountain",
    "weather",
    "small",
    "gas",
    "stove",
    "warm",
    "cotton",
    "with",
    "zip",
    "pockets",
    "recycled",
    "nylon",
    "breathable",
    "sole",
    "grip",
    "summer",
    "winter",
    "blue",
    "green",
    "adjustable",
    "strap",
];

pub struct Catalogue {
    rng: Rng,
    /// The text of each row now, and the one before.
    rows: Vec<(String, Option<String>)>,
    texts: usize,
}

/// One statement of the shop's.
pub enum Change {
    Text { row: usize, text: String },
    Stock { row: usize },
}

impl Change {
    pub fn row(&self) -> usize {
        match self {
            Change::Text { row, .. } | Change::Stock { row } => *row,
        }
    }
}

impl Catalogue {
    pub fn new(rows: usize, seed: u64) -> Catalogue {
        let mut catalogue = Catalogue {
            rng: Rng::with_seed(seed),
            rows: Vec::new(),
            texts: 0,
        };
        for _ in 0..rows {
            let text = catalogue.new_text();
            catalogue.rows.push((text, None));
        }
        catalogue
    }

    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.rows.iter().map(|(text, _)| text.as_str())
    }

    pub fn text(&self, row: usize) -> &str {
        &self.rows[row].0
    }

    /// How many texts there have been.
    pub fn distinct(&self) -> usize {
        self.texts
    }

    fn new_text(&mut self) -> String {
        self.texts += 1;
        let length = self.rng.usize(LENGTH);
        let words: Vec<&str> = (0..length)
            .map(|_| WORDS[self.rng.usize(..WORDS.len())])
            .collect();
        format!("Article {} {}", self.texts, words.join(" "))
    }

    /// The next change, and the catalogue after it. Few rows change often: half of the changes are of a tenth of them.
    pub fn change(&mut self) -> Change {
        let all = self.rows.len();
        let row = match self.rng.bool() {
            true => self.rng.usize(..all.div_ceil(10)),
            false => self.rng.usize(..all),
        };
        let kind = self.rng.usize(..100);
        if kind < NEW {
            let text = self.new_text();
            let before = std::mem::replace(&mut self.rows[row].0, text.clone());
            self.rows[row].1 = Some(before);
            return Change::Text { row, text };
        }
        if kind < NEW + REVERTS
            && let Some(before) = self.rows[row].1.take()
        {
            let undone = std::mem::replace(&mut self.rows[row].0, before.clone());
            self.rows[row].1 = Some(undone);
            return Change::Text { row, text: before };
        }
        if kind < NEW + REVERTS + REPEATS {
            let text = self.rows[row].0.clone();
            return Change::Text { row, text };
        }
        Change::Stock { row }
    }
}
