//! ALS: few numbers for each user and each item, whose inner product says how much the one is for the other.
//!
//! What a user has had to do with is worth 1 and is as good as certain; everything else is worth 0, and hardly anybody
//! knows. Users' and items' factors in turn are what least squares make of the others' (Hu, Koren, Volinsky, ICDM 2008,
//! "Collaborative filtering for implicit feedback datasets"). It never holds the matrix of all users by all items.

use std::collections::TryReserveError;

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

use super::sets::Sets;
use super::{NoModel, Stop};

/// Rows of factors: of users or of items, one after the other.
#[derive(Debug, PartialEq)]
pub struct Factors {
    pub users: Vec<f32>,
    pub items: Vec<f32>,
    /// What items' factors come to, for [`fold_in`].
    pub squares: Vec<f64>,
}

/// What it is made with.
#[derive(Clone, Copy)]
pub struct Settings {
    /// Numbers of each user and item.
    pub width: usize,
    /// How certain it is that a user likes what they have had to do with; 1: that they do not like all else.
    pub alpha: f64,
    /// Times their squares, factors count as errors.
    pub lambda: f64,
    pub rounds: usize,
    pub seed: u64,
}

/// The most bytes that [`train`] takes: factors, a wider copy of one side's, what a row that has all of them is
/// solved from, and who has what both ways round.
pub fn bytes(users: usize, items: usize, pairs: usize, width: usize) -> u64 {
    let rows = (users + items) as u64;
    rows * (width as u64 * size_of::<f32>() as u64 + 16)
        + 2 * (users.max(items) * width * size_of::<f64>()) as u64
        + 2 * 4 * pairs as u64
        + (width * width * 64) as u64
}

/// # Errors
/// Where there is no memory.
pub fn train(sets: &Sets, settings: &Settings, stop: &Stop) -> Result<Factors, NoModel> {
    let turned = sets.turned();
    let mut rng = fastrand::Rng::with_seed(settings.seed);
    let mut random = |rows: usize| -> Result<Vec<f32>, TryReserveError> {
        let mut factors = Vec::new();
        factors.try_reserve_exact(rows * settings.width)?;
        factors.extend((0..rows * settings.width).map(|_| rng.f32() * 0.01));
        Ok(factors)
    };
    let mut factors = Factors {
        users: random(sets.users())?,
        items: random(sets.items())?,
        squares: Vec::new(),
    };
    for _ in 0..settings.rounds {
        solve(sets, &factors.items, &mut factors.users, settings, stop)?;
        solve(&turned, &factors.users, &mut factors.items, settings, stop)?;
    }
    factors.squares = squares(&widened(&factors.items)?, settings);
    Ok(factors)
}

/// The rows that fit those of the other side best.
fn solve(
    sets: &Sets,
    of_others: &[f32],
    rows: &mut [f32],
    settings: &Settings,
    stop: &Stop,
) -> Result<(), NoModel> {
    let width = settings.width;
    let others = widened(of_others)?;
    let squares = squares(&others, settings);
    let mut solver = Solver::new(&squares, settings)?;
    for (set, row) in sets.of_users().zip(rows.chunks_exact_mut(width)) {
        stop.check()?;
        solver.begin();
        for other in set {
            let from = *other as usize * width;
            solver.add(&others[from..from + width], 1.0);
        }
        for (factor, solved) in row.iter_mut().zip(solver.solve()?) {
            *factor = *solved as f32;
        }
    }
    Ok(())
}

fn widened(numbers: &[f32]) -> Result<Vec<f64>, TryReserveError> {
    let mut wide = Vec::new();
    wide.try_reserve_exact(numbers.len())?;
    wide.extend(numbers.iter().copied().map(f64::from));
    Ok(wide)
}

/// What all rows of the other side come to, which each row of this one is solved from: the sum of their squares, and λ.
fn squares(others: &[f64], settings: &Settings) -> Vec<f64> {
    let width = settings.width;
    // A row of factors is a column here: matrices are column by column.
    let all = MatRef::from_column_major_slice(others, width, others.len() / width);
    let mut squares = vec![0.0; width * width];
    multiply(&mut squares, all, 1.0, width);
    for row in 0..width {
        squares[row * width + row] += settings.lambda;
    }
    squares
}

/// The factors of a user who was not there when it was trained, or of what they have done since: of items' factors and what
/// each counts, from 0 to 1.
///
/// # Errors
/// Where the squares are none.
pub fn fold_in(
    squares: &[f64],
    items: &[(Vec<f32>, f64)],
    settings: &Settings,
) -> Result<Vec<f32>, NoModel> {
    if squares.len() != settings.width * settings.width {
        return Err(NoModel::NotPositive);
    }
    let mut solver = Solver::new(squares, settings)?;
    solver.begin();
    for (factors, weight) in items {
        let factors: Vec<f64> = factors.iter().copied().map(f64::from).collect();
        if factors.len() == settings.width {
            solver.add(&factors, *weight);
        }
    }
    let solved = solver.solve()?;
    Ok(solved.iter().map(|factor| *factor as f32).collect())
}

/// One row after the other.
struct Solver<'a> {
    squares: &'a [f64],
    settings: &'a Settings,
    memory: MemBuffer,
    matrix: Vec<f64>,
    /// What the row has, each times the root of its weight.
    own: Vec<f64>,
    wanted: Vec<f64>,
}

impl Solver<'_> {
    fn new<'a>(squares: &'a [f64], settings: &'a Settings) -> Result<Solver<'a>, NoModel> {
        let width = settings.width;
        let need =
            llt::factor::cholesky_in_place_scratch::<f64>(width, Par::Seq, Default::default());
        Ok(Solver {
            squares,
            settings,
            memory: MemBuffer::try_new(need).map_err(|_| NoModel::Memory)?,
            matrix: Vec::new(),
            own: Vec::new(),
            wanted: vec![0.0; width],
        })
    }

    fn begin(&mut self) {
        self.own.clear();
        self.wanted.fill(0.0);
    }

    fn add(&mut self, factors: &[f64], weight: f64) {
        let root = weight.max(0.0).sqrt();
        self.own.extend(factors.iter().map(|factor| factor * root));
        for (sum, factor) in self.wanted.iter_mut().zip(factors) {
            *sum += self.settings.alpha * weight * factor;
        }
    }

    /// What fits best what was added since [`Solver::begin`].
    fn solve(&mut self) -> Result<&[f64], NoModel> {
        let width = self.settings.width;
        self.matrix.clear();
        self.matrix.extend_from_slice(self.squares);
        let own = MatRef::from_column_major_slice(&self.own, width, self.own.len() / width);
        multiply(&mut self.matrix, own, self.settings.alpha - 1.0, width);
        llt::factor::cholesky_in_place(
            MatMut::from_column_major_slice_mut(&mut self.matrix, width, width),
            Default::default(),
            Par::Seq,
            MemStack::new(&mut self.memory),
            Default::default(),
        )
        .map_err(|_| NoModel::NotPositive)?;
        llt::solve::solve_in_place(
            MatRef::from_column_major_slice(&self.matrix, width, width),
            MatMut::from_column_major_slice_mut(&mut self.wanted, width, 1),
            Par::Seq,
            MemStack::new(&mut []),
        );
        Ok(&self.wanted)
    }
}

/// Adds `by` times a matrix and its transpose.
fn multiply(to: &mut [f64], matrix: MatRef<f64>, by: f64, width: usize) {
    matmul(
        MatMut::from_column_major_slice_mut(to, width, width),
        Accum::Add,
        matrix,
        matrix.transpose(),
        by,
        Par::Seq,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings = Settings {
        width: 8,
        alpha: 20.0,
        lambda: 0.05,
        rounds: 15,
        seed: 1,
    };

    /// Two kinds of users who have nothing in common; each lacks one item of their kind.
    fn two_kinds() -> Sets {
        let (mut users, mut items) = (Vec::new(), Vec::new());
        for user in 0..20 {
            for item in 0..10 {
                if item != user % 10 {
                    users.push(user + 1);
                    items.push(item + 1 + if user < 10 { 0 } else { 10 });
                }
            }
        }
        Sets::new(&users, &items)
    }

    fn score(factors: &Factors, user: usize, item: usize) -> f32 {
        let width = factors.users.len() / 20;
        let of = |rows: &[f32], row: usize| rows[row * width..][..width].to_vec();
        let (user, item) = (of(&factors.users, user), of(&factors.items, item));
        user.iter().zip(&item).map(|(a, b)| a * b).sum()
    }

    #[test]
    fn what_a_user_lacks_of_their_kind_comes_before_all_of_another_kind() {
        // As many numbers as there are kinds: more would learn what each user lacks.
        let settings = Settings {
            width: 2,
            ..SETTINGS
        };
        let factors = train(&two_kinds(), &settings, &Stop::default()).unwrap();
        for user in 0..20 {
            let first = if user < 10 { 0 } else { 10 };
            let lacking = score(&factors, user, first + user % 10);
            for other in 0..10 {
                let foreign = score(&factors, user, (first + 10) % 20 + other);
                assert!(
                    lacking > foreign + 0.2,
                    "{user} {other}: {lacking} {foreign}"
                );
            }
        }
    }

    /// The law: at the end, no small change of a user's factors makes the sum of the errors less.
    #[test]
    fn users_factors_are_where_the_error_is_least() {
        let sets = two_kinds();
        let mut factors = train(&sets, &SETTINGS, &Stop::default()).unwrap();
        let items = factors.items.clone();
        solve(
            &sets,
            &items,
            &mut factors.users,
            &SETTINGS,
            &Stop::default(),
        )
        .unwrap();
        let set: Vec<u32> = sets.of_users().next().unwrap().to_vec();
        let error = |factors: &Factors| -> f64 {
            let errors = (0..sets.items()).map(|item| {
                let score = f64::from(score(factors, 0, item));
                match set.contains(&(item as u32)) {
                    true => SETTINGS.alpha * (1.0 - score).powi(2),
                    false => score.powi(2),
                }
            });
            let squares = factors.users[..8]
                .iter()
                .map(|factor| SETTINGS.lambda * f64::from(*factor).powi(2));
            errors.sum::<f64>() + squares.sum::<f64>()
        };
        let least = error(&factors);
        for at in 0..8 {
            for change in [-0.01, 0.01] {
                factors.users[at] += change;
                assert!(error(&factors) > least);
                factors.users[at] -= change;
            }
        }
    }

    #[test]
    fn who_is_folded_in_has_the_factors_of_one_who_was_trained_on_it() {
        let sets = two_kinds();
        let mut factors = train(&sets, &SETTINGS, &Stop::default()).unwrap();
        solve(
            &sets,
            &factors.items.clone(),
            &mut factors.users,
            &SETTINGS,
            &Stop::default(),
        )
        .unwrap();
        let item = |item: &u32| factors.items[*item as usize * 8..][..8].to_vec();
        for (user, set) in sets.of_users().enumerate() {
            let items: Vec<(Vec<f32>, f64)> = set.iter().map(|id| (item(id), 1.0)).collect();
            let folded = fold_in(&factors.squares, &items, &SETTINGS).unwrap();
            for (factor, wanted) in folded.iter().zip(&factors.users[user * 8..]) {
                assert!((factor - wanted).abs() < 1e-5, "{factor} {wanted}");
            }
        }
        // Of what counts for nothing, nothing comes; and of no squares neither.
        let nothing = fold_in(&factors.squares, &[(item(&0), 0.0)], &SETTINGS).unwrap();
        assert_eq!(nothing, [0.0; 8]);
        assert!(fold_in(&[], &[(item(&0), 1.0)], &SETTINGS).is_err());
    }

    #[test]
    fn it_stops_when_nobody_waits() {
        let trained = train(&two_kinds(), &SETTINGS, &Stop::set());
        assert!(matches!(trained, Err(NoModel::Stopped)));
    }

    #[test]
    fn the_same_seed_gives_the_same_factors() {
        let sets = two_kinds();
        assert_eq!(
            train(&sets, &SETTINGS, &Stop::default()).unwrap(),
            train(&sets, &SETTINGS, &Stop::default()).unwrap()
        );
    }
}
