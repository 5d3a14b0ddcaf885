//! What the demo looks like in a terminal: SQL, tables, a progress bar, promises that were kept.
//! It never writes colours or carriage returns where the output is no terminal.

use std::io::{IsTerminal, Write};

/// Lines stay within this.
const WIDTH: usize = 96;
const BAR: usize = 40;

/// A query's answer as text.
pub struct Table {
    pub columns: Vec<String>,
    pub rows: Vec<Vec<Option<String>>>,
}

impl Table {
    /// The values of a column, by its name.
    pub fn column(&self, name: &str) -> Vec<&str> {
        let Some(index) = self.columns.iter().position(|column| column == name) else {
            return Vec::new();
        };
        self.rows
            .iter()
            .map(|row| row[index].as_deref().unwrap_or_default())
            .collect()
    }
}

pub struct Terminal {
    is_terminal: bool,
    colours: bool,
    drawn_tenths: usize,
}

impl Terminal {
    pub fn new() -> Terminal {
        let is_terminal = std::io::stdout().is_terminal();
        let colours = is_terminal && std::env::var_os("NO_COLOR").is_none();
        Terminal {
            is_terminal,
            colours,
            drawn_tenths: 0,
        }
    }

    /// A new step.
    pub fn step(&self, title: &str) {
        println!("\n{}", self.coloured("1", &format!("== {title}")));
    }

    pub fn note(&self, text: &str) {
        println!("  {text}");
    }

    /// A promise that holds.
    pub fn kept(&self, promise: &str) {
        println!("  {} {promise}", self.coloured("32", "✓"));
    }

    /// A statement that is about to run.
    pub fn sql(&self, statement: &str) {
        for line in statement.lines() {
            println!("  {}", self.coloured("36", line));
        }
    }

    pub fn table(&self, table: &Table) {
        let widths: Vec<usize> = (0..table.columns.len())
            .map(|index| {
                let values = table.rows.iter().map(|row| length(&row[index]));
                values.fold(table.columns[index].chars().count(), usize::max)
            })
            .collect();
        let line = |cells: Vec<&str>| {
            let cells = cells.iter().zip(&widths);
            let cells = cells.map(|(cell, &width)| match is_number(cell) {
                true => format!("{cell:>width$}"),
                false => format!("{cell:<width$}"),
            });
            cut(cells.collect::<Vec<_>>().join(" | ").trim_end())
        };
        let heads = table.columns.iter().map(String::as_str);
        println!("    {}", self.coloured("2", &line(heads.collect())));
        for row in &table.rows {
            let cells = row.iter().map(|cell| cell.as_deref().unwrap_or_default());
            println!("    {}", line(cells.collect()));
        }
    }

    /// One line a column, for rows that are too wide for a table.
    pub fn record(&self, table: &Table) {
        let width = table.columns.iter().map(|column| column.len()).max();
        let width = width.unwrap_or_default();
        for row in &table.rows {
            for (column, value) in table.columns.iter().zip(row) {
                let value = cut(value.as_deref().unwrap_or("(null)"));
                println!(
                    "    {} | {value}",
                    self.coloured("2", &format!("{column:width$}"))
                );
            }
        }
    }

    /// How far it is: a bar that moves, or a line for each tenth where nothing can move.
    pub fn progress(&mut self, done: usize, total: usize, per_second: f64) {
        let total = total.max(1);
        let text = format!("{done:>4} of {total} rows, {per_second:>4.0} rows/s");
        if self.is_terminal {
            let full = BAR * done.min(total) / total;
            let (full, rest) = ("█".repeat(full), "░".repeat(BAR - full));
            print!(
                "\r  {} {text}",
                self.coloured("32", &full) + &self.coloured("2", &rest)
            );
            if done >= total {
                println!();
            }
            // A bar that is not drawn is no reason to end.
            let _ = std::io::stdout().flush();
        } else if 10 * done / total > self.drawn_tenths {
            self.drawn_tenths = 10 * done / total;
            println!("  {text}");
        }
    }

    fn coloured(&self, code: &str, text: &str) -> String {
        if self.colours && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

fn length(cell: &Option<String>) -> usize {
    cell.as_deref().unwrap_or_default().chars().count()
}

fn is_number(cell: &str) -> bool {
    cell.parse::<f64>().is_ok()
}

fn cut(line: &str) -> String {
    if line.chars().count() <= WIDTH - 4 {
        return line.to_owned();
    }
    line.chars().take(WIDTH - 5).chain(['…']).collect()
}
