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
///
/// perftest prints a line of titles that begins with `#bytes` and below it one line of numbers. Titles are
/// separated by two blanks or more, as in `#bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]`, but
/// older releases put a single blank before some.
pub fn figures(text: &str) -> Option<Figures> {
    let mut lines = text.lines().skip_while(|line| !line.trim_start().starts_with("#bytes"));
    let names = titles(lines.next()?);
    let values: Vec<f64> = lines
        .map(|line| line.split_whitespace().map(str::parse).collect::<Result<Vec<f64>, _>>())
        .find_map(|numbers| numbers.ok().filter(|numbers| !numbers.is_empty()))?;
    (names.len() == values.len()).then_some(Figures { names, values })
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
    fn output_without_a_result_gives_none() {
        assert_eq!(figures("Couldn't connect\n #bytes #iterations\n"), None);
    }
}
