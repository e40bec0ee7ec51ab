//! Chooses few combinations of many: every value, or every pair of values, is met in at least one of them.
//!
//! Called by `plan.rs`. Most faults that depend on circumstances depend on one or two of them, so this finds nearly
//! what the full product finds. The choice is greedy and the same on every run.

use std::collections::BTreeSet;

/// A combination: one value for each dimension, by number.
pub type Combination = Vec<usize>;

/// All combinations of dimensions with these numbers of values, the last dimension changing fastest.
pub fn product(sizes: &[usize]) -> Vec<Combination> {
    sizes.iter().fold(vec![Vec::new()], |all, size| {
        all.iter().flat_map(|head| (0..*size).map(move |value| [&head[..], &[value]].concat())).collect()
    })
}

/// Places in `all` that together have each pair of values (of two dimensions) that occurs in `all`.
pub fn each_pair(all: &[Combination]) -> Vec<usize> {
    let pairs = |combination: &Combination| {
        let mut pairs = BTreeSet::new();
        for (at, value) in combination.iter().enumerate() {
            pairs.extend(combination.iter().enumerate().skip(at + 1).map(|(other, its)| (at, *value, other, *its)));
        }
        pairs
    };
    // In a full product all places to begin at are alike.
    cover(&all.iter().map(pairs).collect::<Vec<_>>())
}

/// Places in `all` that together have each value that occurs in `all`, the first place among them.
pub fn each_value(all: &[Combination]) -> Vec<usize> {
    each_value_of(all, &(0..all.first().map_or(0, Vec::len)).collect::<Vec<_>>())
}

/// The same for the dimensions `which`.
pub fn each_value_of(all: &[Combination], which: &[usize]) -> Vec<usize> {
    let values = |combination: &Combination| which.iter().map(|at| (*at, combination[*at])).collect();
    cover(&all.iter().map(values).collect::<Vec<_>>())
}

/// Places in `has` that together have each thing in it: the first place, then always the one that adds most.
fn cover<T: Ord>(has: &[BTreeSet<T>]) -> Vec<usize> {
    let mut missing: BTreeSet<&T> = has.iter().flatten().collect();
    let (mut chosen, mut next) = (Vec::new(), (!has.is_empty()).then_some(0));
    while let Some(place) = next {
        chosen.push(place);
        missing.retain(|thing| !has[place].contains(thing));
        let gain = |place: &usize| has[*place].iter().filter(|thing| missing.contains(thing)).count();
        // Of equals the first: `max_by_key` gives the last.
        next = (0..has.len()).rev().max_by_key(gain).filter(|place| gain(place) > 0);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(all: &[Combination], chosen: &[usize]) -> BTreeSet<(usize, usize, usize, usize)> {
        let mut pairs = BTreeSet::new();
        for combination in chosen.iter().map(|place| &all[*place]) {
            for (a, x) in combination.iter().enumerate() {
                for (b, y) in combination.iter().enumerate().filter(|(b, _)| *b > a) {
                    pairs.insert((a, *x, b, *y));
                }
            }
        }
        pairs
    }

    #[test]
    fn product_has_each_combination_once() {
        let all = product(&[2, 3, 1]);
        assert_eq!(all, [[0, 0, 0], [0, 1, 0], [0, 2, 0], [1, 0, 0], [1, 1, 0], [1, 2, 0]]);
        assert_eq!(product(&[]), [[0usize; 0]]);
    }

    #[test]
    fn each_pair_of_values_is_met() {
        for sizes in [&[2, 2, 2, 2, 3, 2][..], &[2, 2], &[4, 3, 2, 5], &[3], &[2; 10]] {
            let all = product(sizes);
            let everything: Vec<usize> = (0..all.len()).collect();
            let chosen = each_pair(&all);
            // One dimension has no pairs, and one combination is chosen all the same.
            assert_eq!(pairs(&all, &chosen), pairs(&all, &everything), "{sizes:?}");
            assert!(chosen.iter().collect::<BTreeSet<_>>().len() == chosen.len(), "{sizes:?}: chosen twice");
        }
    }

    #[test]
    fn few_are_chosen() {
        // No choice can be shorter than the product of the two largest dimensions.
        assert!((6..=8).contains(&each_pair(&product(&[2, 2, 2, 2, 3, 2])).len()), "of 96");
        assert!(each_pair(&product(&[2; 10])).len() <= 12, "of 1024");
    }

    #[test]
    fn pairs_that_do_not_occur_are_not_asked_for() {
        let all: Vec<_> = product(&[2, 2, 2]).into_iter().filter(|it| !(it[0] == 1 && it[1] == 1)).collect();
        let everything: Vec<usize> = (0..all.len()).collect();
        assert_eq!(pairs(&all, &each_pair(&all)), pairs(&all, &everything));
    }

    #[test]
    fn each_value_of_the_wanted_dimensions_is_met() {
        let all = product(&[2, 3, 5]);
        let chosen = each_value_of(&all, &[0, 1]);
        assert_eq!(chosen.len(), 3);
        for (at, size) in [(0, 2), (1, 3)] {
            assert_eq!(chosen.iter().map(|place| all[*place][at]).collect::<BTreeSet<_>>().len(), size);
        }
    }

    #[test]
    fn nothing_of_nothing() {
        assert!(each_pair(&[]).is_empty() && each_value(&[]).is_empty());
    }
}
