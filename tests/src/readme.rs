//! The lines that README.md tells its readers to type, for those who check that they work.

use std::fs;

use crate::workspace;

/// Lines that are set in under one heading, without a blank line in between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The heading, without marks.
    pub heading: String,
    /// The lines, without what sets them in.
    pub text: String,
}

impl Block {
    /// The first line, by which a block is known.
    pub fn name(&self) -> &str {
        self.text.lines().next().unwrap_or_default()
    }
}

/// Every block of README.md, in order.
pub fn blocks() -> Vec<Block> {
    parse(&fs::read_to_string(workspace().join("README.md")).expect("README.md can be read"))
}

/// The only line of README.md that begins so, without its comment.
pub fn line(beginning: &str) -> String {
    let blocks = blocks();
    let lines = blocks.iter().flat_map(|block| block.text.lines()).filter(|line| line.starts_with(beginning));
    let found: Vec<&str> = lines.collect();
    assert_eq!(found.len(), 1, "README.md has one line that begins with {beginning:?}: {found:?}");
    found[0].split("  #").next().unwrap_or_default().trim_end().to_owned()
}

fn parse(text: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut heading = "";
    let mut inside = false;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('#') {
            heading = name.trim_start_matches('#').trim();
        }
        let code = line.strip_prefix("    ");
        match (code, inside) {
            (Some(code), true) => {
                let block = blocks.last_mut().expect("a block was begun");
                block.text.push_str(code);
                block.text.push('\n');
            }
            (Some(code), false) => blocks.push(Block { heading: heading.to_owned(), text: format!("{code}\n") }),
            (None, _) => {}
        }
        inside = code.is_some();
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_end_at_blank_lines_and_know_their_heading() {
        let text = "# a\n\n    one\n    two\n\nprose\n\n    three\n\n## b c\n    four\n";
        let found: Vec<(String, String)> = parse(text).into_iter().map(|block| (block.heading, block.text)).collect();
        let wanted = [("a", "one\ntwo\n"), ("a", "three\n"), ("b c", "four\n")];
        assert_eq!(found, wanted.map(|(heading, text)| (heading.to_owned(), text.to_owned())));
    }
}
