//! Reads the result line of perftest's tools.

/// The figures of one run, by what perftest calls its columns.
#[derive(Debug, Clone, PartialEq)]
pub struct Figures {
    names: Vec<String>,
    values: Vec<f64>,
}

impl Figures {
    /// The value of the column whose title begins with `name`, such as `BW average` or `t_typical`.
    pub fn get(&self, name: &str) -> Option<f64> {
        let column = self.names.iter().position(|title| title.starts_with(name))?;
        self.values.get(column).copied()
    }
}

/// Finds the result of a run over one message size in what the tool printed.
pub fn figures(text: &str) -> Option<Figures> {
    all_figures(text).into_iter().next()
}

/// Finds the results of a run over many message sizes, a line for each.
///
/// perftest prints a line of titles that begins with `#bytes` and below it lines of numbers. Titles are
/// separated by two blanks or more, as in `#bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]`, but
/// older releases put a single blank before some.
pub fn all_figures(text: &str) -> Vec<Figures> {
    let mut lines = text.lines().skip_while(|line| !line.trim_start().starts_with("#bytes"));
    let names = titles(lines.next().unwrap_or_default());
    let numbers = lines.filter_map(|line| line.split_whitespace().map(|word| word.parse().ok()).collect());
    let lines = numbers.filter(|values: &Vec<f64>| !values.is_empty() && values.len() == names.len());
    lines.map(|values| Figures { names: names.clone(), values }).collect()
}

fn titles(line: &str) -> Vec<String> {
    let mut titles: Vec<String> = Vec::new();
    let mut words = line.split_whitespace().peekable();
    while let Some(word) = words.next() {
        // "BW peak[..]" and "99% percentile[..]" are the titles of two words.
        let title = match (word, words.peek()) {
            ("BW" | "99%" | "99.9%", Some(second)) => format!("{word} {second}"),
            _ => {
                titles.push(word.to_owned());
                continue;
            }
        };
        words.next();
        titles.push(title);
    }
    titles
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidth_line_is_read() {
        let text = "---\n #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate[Mpps]\n \
                    65536      1000             3410.56            3297.01            0.052752\n---\n";
        let figures = figures(text).expect("a result");
        assert_eq!(figures.get("BW average"), Some(3297.01));
        assert_eq!(figures.get("#bytes"), Some(65536.0));
        assert_eq!(figures.get("t_typical"), None);
    }

    #[test]
    fn latency_line_is_read() {
        let text = " #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    t_avg[usec]    \
                    t_stdev[usec]   99% percentile[usec]   99.9% percentile[usec] \n \
                    8       1000          5.10           90.2         5.52     \t       5.6        \t0.2     \t\t7.0     \t\t\t9.0\n";
        assert_eq!(figures(text).expect("a result").get("t_typical"), Some(5.52));
    }

    #[test]
    fn every_size_has_its_line() {
        let text = " #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate[Mpps]\n \
                    2          100              1.0    2.0   0.5\n 4          100              3.0    4.0   0.5\n---\n";
        let averages: Vec<_> = all_figures(text).iter().map(|line| line.get("BW average")).collect();
        assert_eq!(averages, [Some(2.0), Some(4.0)]);
    }

    #[test]
    fn output_without_a_result_gives_none() {
        assert_eq!(figures("Couldn't connect\n #bytes #iterations\n"), None);
    }
}
