//! Which cells are run.

use std::collections::BTreeSet;

use super::column::{Column, PROVIDER};
use super::pairwise::{Combination, each_pair, each_value, each_value_of};
use super::rows::Row;

/// The columns of the table and the cells of it that are run.
pub struct Plan {
    /// In the order they are printed.
    pub columns: Vec<Column>,
    /// By row and column number.
    cells: BTreeSet<(usize, usize)>,
}

impl Plan {
    /// Few columns that have each pair of circumstances; in them each row meets each circumstance.
    pub fn short(rows: &[&Row], all: &[Column]) -> Plan {
        let columns = pick(all, each_pair);
        let mut uses = vec![0; columns.len()];
        Plan::new(columns.clone(), rows, |row| {
            // Those that were used least stand first, and of equals the first is taken.
            let mut fit = fitting(row, &columns);
            let place = |column: &Column| columns.iter().position(|it| it == column).expect("one of them");
            fit.sort_by_key(|column| uses[place(column)]);
            let chosen = if row.long { fit[..fit.len().min(1)].to_vec() } else { pick(&fit, each_value) };
            chosen.iter().for_each(|column| uses[place(column)] += 1);
            chosen
        })
    }

    /// Every column there is with the machine's own libibverbs; with forky's, columns that have each pair.
    pub fn full(rows: &[&Row], all: &[Column]) -> Plan {
        let (forky, own): (Vec<Column>, Vec<Column>) = all.iter().partition(|column| column.is_forky());
        let forky = pick(&forky, each_pair);
        let columns = [own.clone(), forky.clone()].concat();
        Plan::new(columns.clone(), rows, |row| match row.long {
            true => [
                pick(&fitting(row, &own), each_value),
                pick(&fitting(row, &forky), |all| each_value_of(all, &[PROVIDER])),
            ]
            .concat(),
            false => fitting(row, &columns),
        })
    }

    /// Every row in every one of these columns.
    pub fn every(rows: &[&Row], columns: Vec<Column>) -> Plan {
        Plan::new(columns.clone(), rows, |row| fitting(row, &columns))
    }

    fn new(columns: Vec<Column>, rows: &[&Row], mut choose: impl FnMut(&Row) -> Vec<Column>) -> Plan {
        let mut cells = BTreeSet::new();
        for (number, row) in rows.iter().enumerate() {
            let chosen = choose(row);
            let places = columns.iter().enumerate().filter(|(_, column)| chosen.contains(column));
            cells.extend(places.map(|(place, _)| (number, place)));
        }
        Plan { columns, cells }
    }

    /// Whether a cell is run.
    pub fn has(&self, row: usize, column: usize) -> bool {
        self.cells.contains(&(row, column))
    }

    /// How many cells are run.
    pub fn len(&self) -> usize {
        self.cells.len()
    }
}

fn pick(columns: &[Column], choose: impl Fn(&[Combination]) -> Vec<usize>) -> Vec<Column> {
    let values: Vec<_> = columns.iter().map(Column::values).collect();
    choose(&values).into_iter().map(|place| columns[place]).collect()
}

fn fitting(row: &Row, columns: &[Column]) -> Vec<Column> {
    columns.iter().copied().filter(|column| row.applies(column)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::rows::ROWS;
    use super::*;

    fn words(plan: &Plan, row: usize) -> BTreeSet<&'static str> {
        let chosen = plan.columns.iter().enumerate().filter(|(place, _)| plan.has(row, *place));
        chosen.flat_map(|(_, column)| column.words()).collect()
    }

    #[test]
    fn in_the_short_form_each_row_meets_each_circumstance() {
        let plan = Plan::short(&ROWS.iter().collect::<Vec<_>>(), &Column::all(true));
        for (number, row) in ROWS.iter().enumerate() {
            let met = words(&plan, number);
            if row.long {
                assert_eq!(met.len(), 7, "{}: one column", row.line);
            } else {
                let all = Column::all(true);
                let there: BTreeSet<_> = all.iter().filter(|it| row.applies(it)).flat_map(Column::words).collect();
                assert_eq!(met, there, "{}", row.line);
            }
        }
        assert!(plan.len() < ROWS.len() * 4, "{} cells are not short", plan.len());
    }

    #[test]
    fn in_the_short_form_all_columns_do_their_part() {
        let plan = Plan::short(&ROWS.iter().collect::<Vec<_>>(), &Column::all(true));
        for place in 0..plan.columns.len() {
            let uses = (0..ROWS.len()).filter(|row| plan.has(*row, place)).count();
            assert!(uses >= ROWS.len() / 5, "{:?}: {uses}", plan.columns[place].words());
        }
    }

    #[test]
    fn in_the_full_form_nothing_of_the_machines_own_is_left_out() {
        let plan = Plan::full(&ROWS.iter().collect::<Vec<_>>(), &Column::all(true));
        assert_eq!(plan.columns.iter().filter(|column| !column.is_forky()).count(), 49);
        for (number, row) in ROWS.iter().enumerate() {
            for (place, column) in plan.columns.iter().enumerate() {
                let wanted = row.applies(column) && !row.long;
                assert!(!wanted || plan.has(number, place), "{} {:?}", row.line, column.words());
                assert!(row.applies(column) || !plan.has(number, place));
            }
        }
    }

    #[test]
    fn who_is_not_root_has_a_matrix_too() {
        let plan = Plan::short(&ROWS.iter().collect::<Vec<_>>(), &Column::all(false));
        assert!(plan.columns.iter().all(Column::is_ordinary) && plan.len() > ROWS.len() * 2);
    }
}
