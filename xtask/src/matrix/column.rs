//! One combination of circumstances a program runs in: a column of the table.

use anyhow::{Result, bail};
use pvrdma_tests::{Doorbells, Provider, User, Uverbs};

/// The dimensions and the words for their values, as the command line, the table and `tests/matrix/expected.txt`
/// have them. Each word means one thing only.
const DIMENSIONS: [&[&str]; 7] = [
    // Ours, or the C provider of the same rdma-core.
    &["ours", "c"],
    // Both processes in one guest, or each in a guest of its own.
    &["one", "two"],
    &["root", "ordinary"],
    &["v2", "v1"],
    &["ioctl", "invoke", "write"],
    // Whose libibverbs, programs and libc.
    &["bookworm", "forky"],
    // Doorbells as usual, or all of them by the trap: in one column, since the C provider has no other way anyway.
    &["usual", "trap"],
];
const TRAPPED: [&str; 6] = ["ours", "two", "ordinary", "v2", "ioctl", "bookworm"];
/// Which dimension is the provider.
pub const PROVIDER: usize = 0;

/// A value for each dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Column([usize; DIMENSIONS.len()]);

impl Column {
    /// All there are for somebody who is root, or is not.
    pub fn all(root: bool) -> Vec<Column> {
        let all = super::pairwise::product(&DIMENSIONS.map(<[_]>::len));
        let all = all.into_iter().map(|values| Column(values.try_into().expect("a value for each dimension")));
        all.filter(|column| root || column.is_ordinary())
            .filter(|column| !column.is_trapped() || column.words().starts_with(&TRAPPED))
            .collect()
    }

    /// The number of each value.
    pub fn values(&self) -> Vec<usize> {
        self.0.to_vec()
    }

    /// The word of each value.
    pub fn words(&self) -> [&'static str; DIMENSIONS.len()] {
        std::array::from_fn(|at| DIMENSIONS[at][self.0[at]])
    }

    /// Whether all these words describe it.
    pub fn is(&self, words: &[String]) -> bool {
        words.iter().all(|word| self.words().contains(&word.as_str()))
    }

    /// Guests of the two processes.
    pub fn guests(&self) -> [&'static str; 2] {
        if self.has_one_guest() { ["red", "red"] } else { ["red", "blue"] }
    }

    pub fn has_one_guest(&self) -> bool {
        self.0[1] == 0
    }

    pub fn is_ordinary(&self) -> bool {
        self.0[2] == 1
    }

    /// `pvrdma run --roce`.
    pub fn roce(&self) -> &'static str {
        DIMENSIONS[3][self.0[3]]
    }

    pub fn uverbs(&self) -> Uverbs {
        Uverbs::ALL[self.0[4]]
    }

    pub fn is_forky(&self) -> bool {
        self.0[5] == 1
    }

    fn is_trapped(&self) -> bool {
        self.0[6] == 1
    }

    pub fn doorbells(&self) -> Doorbells {
        if self.is_trapped() { Doorbells::Trapped } else { Doorbells::Usual }
    }

    pub fn is_ours(&self) -> bool {
        self.0[PROVIDER] == 0
    }

    /// Our provider or the machine's; forky's C provider is a file, see `cell.rs`.
    pub fn provider(&self) -> Provider {
        Provider::BOTH[self.0[PROVIDER]].clone()
    }
}

/// Splits words that describe columns, and refuses one that is no value of any dimension.
pub fn words(text: &str) -> Result<Vec<String>> {
    let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    if let Some(unknown) = words.iter().find(|word| !DIMENSIONS.iter().any(|values| values.contains(&word.as_str()))) {
        bail!("{unknown} is none of {}", DIMENSIONS.map(|values| values.join("|")).join(" "));
    }
    Ok(words)
}

/// The user of a column on this machine.
pub fn user(ordinary: bool, root: bool) -> User {
    if ordinary && root { User::Nobody } else { User::Me }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_word_has_one_meaning() {
        let words: Vec<_> = DIMENSIONS.iter().flat_map(|values| values.iter()).collect();
        assert_eq!(words.iter().collect::<BTreeSet<_>>().len(), words.len());
    }

    #[test]
    fn words_pick_columns() {
        let all = Column::all(true);
        let count = |text| all.iter().filter(|column| column.is(&words(text).expect("known words"))).count();
        assert_eq!(
            (all.len(), count(""), count("c"), count("c two v1 write root forky"), count("c ours")),
            (97, 97, 48, 1, 0)
        );
        assert!(words("ours vms").is_err());
    }

    #[test]
    fn words_and_what_they_mean_agree() {
        for column in Column::all(true) {
            let words = column.words();
            assert_eq!(words[0] == "ours", column.provider() == Provider::Ours);
            assert_eq!(words[1] == "one", column.guests()[0] == column.guests()[1]);
            assert_eq!(words[3], column.roce());
            assert_eq!(words[4], column.uverbs().name());
            assert_eq!(words[6] == "trap", column.doorbells() == Doorbells::Trapped);
        }
    }

    #[test]
    fn who_is_not_root_has_the_other_half() {
        assert!(Column::all(false).iter().all(Column::is_ordinary));
        assert_eq!(Column::all(false).len(), 49);
    }
}
