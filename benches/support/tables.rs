//! Tables in Markdown, and what was to be reached. It never decides what is in them.

/// Prints a table; cells are separated by ` | `.
pub fn table(title: &str, head: &str, rows: &[String]) {
    println!("\n{title}\n\n| {head} |");
    println!("|{}", "---|".repeat(head.split(" | ").count()));
    for row in rows {
        println!("| {row} |");
    }
}

/// A figure to reach.
pub struct Goal {
    what: String,
    wanted: f64,
    measured: f64,
    at_most: bool,
}

pub fn most(what: impl Into<String>, wanted: f64, measured: f64) -> Goal {
    Goal {
        what: what.into(),
        wanted,
        measured,
        at_most: true,
    }
}

pub fn least(what: impl Into<String>, wanted: f64, measured: f64) -> Goal {
    Goal {
        at_most: false,
        ..most(what, wanted, measured)
    }
}

/// What was to be reached, and whether it was; what was not measured (NaN) is left out.
pub fn print_goals(goals: &[Goal]) {
    let measured = goals.iter().filter(|goal| !goal.measured.is_nan());
    let rows = measured.map(|goal| {
        let sign = if goal.at_most { "≤" } else { "≥" };
        let reached = match goal.at_most {
            true => goal.measured <= goal.wanted,
            false => goal.measured >= goal.wanted,
        };
        let verdict = if reached { "reached" } else { "**missed**" };
        let digits = if goal.wanted >= 100.0 { 1 } else { 3 };
        format!(
            "{} | {sign} {} | {:.digits$} | {verdict}",
            goal.what, goal.wanted, goal.measured
        )
    });
    table(
        "to be reached",
        " | wanted | measured | ",
        &rows.collect::<Vec<_>>(),
    );
}
