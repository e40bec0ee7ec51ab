//! What many runs of the same say.

/// The middle of many figures, and where the middle half of them lies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// A quarter of the figures are below.
    pub low: f64,
    /// Half are.
    pub median: f64,
    /// Three quarters are.
    pub high: f64,
}

impl Spread {
    /// That of `figures`; `None` if there are none.
    pub fn of(mut figures: Vec<f64>) -> Option<Spread> {
        figures.sort_by(f64::total_cmp);
        let at = |quarters: usize| figures.get(figures.len() * quarters / 4).copied();
        Some(Spread { low: at(1)?, median: at(2)?, high: at(3)? })
    }
}

/// The middle one. Panics if there is none.
pub fn median(figures: Vec<f64>) -> f64 {
    Spread::of(figures).expect("there was a run").median
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_are_figures_that_were_measured() {
        assert_eq!(Spread::of(vec![5.0, 1.0, 4.0, 2.0, 3.0]), Some(Spread { low: 2.0, median: 3.0, high: 4.0 }));
        assert_eq!(Spread::of(vec![7.0]), Some(Spread { low: 7.0, median: 7.0, high: 7.0 }));
        assert_eq!(Spread::of(Vec::new()), None);
    }
}
