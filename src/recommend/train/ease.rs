//! EASE: by which of a user's items another one is told, in closed form.
//!
//! The weights B that rebuild each user's items X from their other items, with squared error and λ times their squares,
//! and none from an item to itself: B = I − P diag(1 / diag P), P = (XᵀX + λI)⁻¹ (Steck, WWW 2019, "Embarrassingly
//! shallow autoencoders for sparse data"). P is never there as a whole: XᵀX + λI = LLᵀ takes the place of XᵀX, and a few
//! columns of P at a time are solved for. It never keeps more of an item than its heaviest weights.
//!
//! Where the places of a user's items are known, two of them count together the less, the farther apart they are: XᵀX has
//! the sum of `together` in the place of the number of users. That falls to nothing and is convex, so that the matrix
//! is positive as before (Pólya's criterion).

use std::collections::TryReserveError;

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt;
use faer::{MatMut, Par};

use super::sets::Sets;
use super::{NoModel, Stop};

/// Columns of P that are solved for at once.
const PANEL: usize = 128;

/// Places that lie between two items of a user's when they count together half as much as neighbours do; chosen on the
/// validation cuts of benches/README.md.
const APART: f64 = 20.0;

/// How much two items of a user's count together whose places are so far apart.
fn together(one: u32, other: u32) -> f64 {
    1.0 / (1.0 + f64::from(one.abs_diff(other)) / APART)
}

/// How much an item of a user's says for another one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weight {
    pub item: u32,
    pub other: u32,
    pub weight: f32,
}

/// The most bytes that [`train`] takes: the matrix, the panel and what solving it needs, the weights.
pub fn bytes(items: usize, most: usize) -> u64 {
    let panel = PANEL.min(items);
    let weights = room(items, most) * size_of::<(u32, f32)>() + most * size_of::<Weight>();
    8 * (items * items + 3 * items * panel) as u64 + (items * weights) as u64
}

/// Weights of an item that are in memory before the lighter ones go.
fn room(items: usize, most: usize) -> usize {
    most.saturating_mul(2).min(items)
}

/// Of each item the `most` heaviest weights by which it tells others, for or against them.
///
/// # Errors
/// Where there is no memory, λ is not positive, or nobody waits any more: factoring the matrix is not interrupted.
pub fn train(sets: &Sets, lambda: f64, most: usize, stop: &Stop) -> Result<Vec<Weight>, NoModel> {
    let items = sets.items();
    let mut matrix = zeros(items * items)?;
    for (set, places) in sets.placed() {
        for (at, (item, place)) in set.iter().zip(places).enumerate() {
            let column = *item as usize * items;
            for (other, place_of_other) in set[at..].iter().zip(&places[at..]) {
                // Below the diagonal: sets are in order.
                matrix[column + *other as usize] += together(*place, *place_of_other);
            }
        }
    }
    for item in 0..items {
        matrix[item * items + item] += lambda;
    }
    factor(&mut matrix, items)?;
    let mut panel = zeros(items * PANEL.min(items))?;
    let mut kept = Vec::new();
    kept.try_reserve_exact(items)?;
    for _ in 0..items {
        let mut of_item = Vec::new();
        of_item.try_reserve_exact(room(items, most))?;
        kept.push(of_item);
    }
    for from in (0..items).step_by(PANEL) {
        stop.check()?;
        let columns = PANEL.min(items - from);
        let panel = &mut panel[..items * columns];
        panel.fill(0.0);
        for column in 0..columns {
            panel[column * items + from + column] = 1.0;
        }
        solve(&matrix, panel, items);
        for (column, of_other) in panel.chunks_exact(items).enumerate() {
            add(of_other, from + column, most, &mut kept);
        }
    }
    let mut weights = Vec::new();
    weights.try_reserve_exact(items * most.min(items))?;
    for (item, mut of_item) in (0..).zip(kept) {
        cut(&mut of_item, most);
        weights.extend(of_item.into_iter().map(|(other, weight)| Weight {
            item,
            other,
            weight,
        }));
    }
    Ok(weights)
}

fn zeros(length: usize) -> Result<Vec<f64>, TryReserveError> {
    let mut zeros = Vec::new();
    zeros.try_reserve_exact(length)?;
    zeros.resize(length, 0.0);
    Ok(zeros)
}

/// The lower half of a matrix becomes its Cholesky factor.
fn factor(matrix: &mut [f64], items: usize) -> Result<(), NoModel> {
    let need = llt::factor::cholesky_in_place_scratch::<f64>(items, Par::Seq, Default::default());
    let mut memory = MemBuffer::try_new(need).map_err(|_| NoModel::Memory)?;
    llt::factor::cholesky_in_place(
        MatMut::from_column_major_slice_mut(matrix, items, items),
        Default::default(),
        Par::Seq,
        MemStack::new(&mut memory),
        Default::default(),
    )
    .map(|_| ())
    .map_err(|_| NoModel::NotPositive)
}

/// Columns of the unit matrix become those of the inverse.
fn solve(factor: &[f64], panel: &mut [f64], items: usize) {
    let columns = panel.len() / items.max(1);
    let need = llt::solve::solve_in_place_scratch::<f64>(items, columns, Par::Seq);
    let mut memory = MemBuffer::new(need);
    llt::solve::solve_in_place(
        faer::MatRef::from_column_major_slice(factor, items, items),
        MatMut::from_column_major_slice_mut(panel, items, columns),
        Par::Seq,
        MemStack::new(&mut memory),
    );
}

/// Adds the weights by which an item is told, from its column of P, to those of the items that tell it.
fn add(column: &[f64], other: usize, most: usize, kept: &mut [Vec<(u32, f32)>]) {
    let Some(own) = column.get(other).filter(|own| **own > 0.0) else {
        return;
    };
    for (item, (entry, of_item)) in column.iter().zip(kept).enumerate() {
        let weight = (-entry / own) as f32;
        if item == other || weight == 0.0 {
            continue;
        }
        if of_item.len() == of_item.capacity() {
            cut(of_item, most);
        }
        of_item.push((other as u32, weight));
    }
}

fn cut(of_item: &mut Vec<(u32, f32)>, most: usize) {
    if of_item.len() > most {
        of_item.select_nth_unstable_by(most, |a, b| {
            b.1.abs().total_cmp(&a.1.abs()).then(a.0.cmp(&b.0))
        });
        of_item.truncate(most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// B as the paper has it, by Gauss and Jordan.
    fn by_the_book(sets: &Sets, lambda: f64) -> Vec<Vec<f64>> {
        let n = sets.items();
        let mut rows = vec![vec![0.0; 2 * n]; n];
        for (set, places) in sets.placed() {
            for (a, place) in set.iter().zip(places) {
                for (b, other) in set.iter().zip(places) {
                    let apart = (f64::from(*place) - f64::from(*other)).abs();
                    rows[*a as usize][*b as usize] += 20.0 / (20.0 + apart);
                }
            }
        }
        for (i, row) in rows.iter_mut().enumerate() {
            row[i] += lambda;
            row[n + i] = 1.0;
        }
        for i in 0..n {
            let pivot = rows[i].clone();
            for (j, row) in rows.iter_mut().enumerate() {
                let by = row[i] / pivot[i];
                for (entry, of_pivot) in row.iter_mut().zip(&pivot) {
                    *entry = if i == j {
                        of_pivot / pivot[i]
                    } else {
                        *entry - by * of_pivot
                    };
                }
            }
        }
        let inverse: Vec<&[f64]> = rows.iter().map(|row| &row[n..]).collect();
        (0..n)
            .map(|i| {
                (0..n)
                    .map(|j| {
                        if i == j {
                            0.0
                        } else {
                            -inverse[i][j] / inverse[j][j]
                        }
                    })
                    .collect()
            })
            .collect()
    }

    /// Places are known, or are not.
    fn random_sets(users: i32, items: i32, each: usize, placed: bool) -> Sets {
        let mut rng = fastrand::Rng::with_seed(3);
        let (mut of, mut what, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for user in 1..=users {
            let mut all: Vec<i32> = (1..=items).collect();
            rng.shuffle(&mut all);
            for (place, item) in (1..).zip(all.iter().take(each)) {
                of.push(user);
                what.push(*item);
                places.push(place);
            }
        }
        if !placed {
            places.clear();
        }
        Sets::with_places(&of, &what, &places)
    }

    /// More items than a panel has columns, so that panels are put together, too.
    #[test]
    fn weights_are_those_of_the_closed_form() {
        for placed in [false, true] {
            let sets = random_sets(300, 150, 6, placed);
            let wanted = by_the_book(&sets, 20.0);
            let weights = train(&sets, 20.0, usize::MAX, &Stop::default()).unwrap();
            assert_eq!(weights.len(), 150 * 149);
            assert!(weights.iter().any(|weight| weight.weight < 0.0));
            for weight in &weights {
                let wanted = wanted[weight.item as usize][weight.other as usize];
                assert!(
                    (f64::from(weight.weight) - wanted).abs() < 1e-7,
                    "{weight:?}"
                );
            }
        }
    }

    #[test]
    fn of_an_item_the_heaviest_are_kept() {
        let sets = random_sets(300, 150, 6, false);
        let all = train(&sets, 20.0, usize::MAX, &Stop::default()).unwrap();
        let some = train(&sets, 20.0, 7, &Stop::default()).unwrap();
        assert_eq!(some.len(), 150 * 7);
        for item in 0..150 {
            let mut of_all: Vec<f32> = all
                .iter()
                .filter(|w| w.item == item)
                .map(|w| w.weight.abs())
                .collect();
            let mut of_some: Vec<f32> = some
                .iter()
                .filter(|w| w.item == item)
                .map(|w| w.weight.abs())
                .collect();
            of_all.sort_by(|a, b| b.total_cmp(a));
            of_some.sort_by(|a, b| b.total_cmp(a));
            assert_eq!(of_all[..7], of_some);
        }
    }

    #[test]
    fn it_stops_when_nobody_waits() {
        let trained = train(&Sets::new(&[1], &[1]), 100.0, 50, &Stop::set());
        assert!(matches!(trained, Err(NoModel::Stopped)));
    }

    #[test]
    fn nothing_comes_of_nothing() {
        assert_eq!(
            train(&Sets::new(&[], &[]), 100.0, 50, &Stop::default()).unwrap(),
            []
        );
        assert_eq!(
            train(&Sets::new(&[1], &[1]), 100.0, 50, &Stop::default()).unwrap(),
            []
        );
    }
}
