//! Which files of a data set's repository are a split: by the head of its card, else by their names, as
//! `datasets` finds them.
//!
//! The card (README.md) may begin with YAML whose `configs` name subsets, and for each subset the patterns of
//! its splits' files. Without it, a split is what folders or files are called:
//! `data/train-00000-of-00002.parquet`, `test/a.jsonl`, `my-validation.csv`; and a repository that says
//! nothing of splits is all `train`.

use glob::{MatchOptions, Pattern};
use serde::Deserialize;

/// The split that is meant where none is named.
const USUAL_SPLIT: &str = "train";
/// Longer patterns are nobody's.
const MAX_PATTERN: usize = 512;
/// A longer head of a card is none.
const MAX_HEAD: usize = 1 << 20;

/// Endings of files with examples, which a second one may follow that tells of compression.
const ENDINGS: [&str; 7] = ["jsonl", "ndjson", "json", "csv", "tsv", "parquet", "txt"];
const COMPRESSED: [&str; 2] = ["gz", "zst"];

/// Words in names that mean a split.
const WORDS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// What is behind the colon of `owner/name:subset/split`: a split, a subset and its split, or one word that
/// is either.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Part {
    subset: Option<String>,
    split: Option<String>,
}

impl Part {
    /// None: it cannot be the name of a split.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (subset, split) = match text.split_once('/') {
            Some((subset, split)) => (Some(subset), split),
            None => (None, text),
        };
        let sound = super::is_id_part;
        let all_sound = subset.is_none_or(sound) && sound(split);
        all_sound.then(|| Part { subset: subset.map(str::to_owned), split: Some(split.to_owned()) })
    }
}

/// A subset with the files of each of its splits.
#[derive(Debug)]
struct Subset {
    name: String,
    is_default: bool,
    splits: Vec<(String, Vec<String>)>,
}

/// Whether a name ends as files with examples do.
pub(super) fn has_data_ending(name: &str) -> bool {
    ending(name).is_some()
}

/// The kind of file that a name promises.
fn ending(name: &str) -> Option<&str> {
    let (stem, last) = name.rsplit_once('.')?;
    match COMPRESSED.contains(&last) {
        true => stem.rsplit_once('.').map(|(_, ending)| ending).filter(|ending| ENDINGS.contains(ending)),
        false => Some(last).filter(|ending| ENDINGS.contains(ending)),
    }
}

/// The names of the part's files, out of all names of the repository. `card`: the text of its README.md.
///
/// # Errors
/// In words, if the card cannot be read, or there is no such subset, split or file.
pub(super) fn files(names: &[String], card: Option<&str>, part: &Part) -> Result<Vec<String>, String> {
    let named = card.map(|card| subsets_of_card(card, names)).transpose()?.unwrap_or_default();
    let subsets = match named.is_empty() {
        true => vec![Subset { name: "default".into(), is_default: true, splits: by_names(names, "") }],
        false => named,
    };
    if subsets.iter().all(|subset| subset.splits.iter().all(|(_, files)| files.is_empty())) {
        return Err(format!(
            "no files with examples ({}); if a script makes the data set, the hub may have it as files: add \
             `@refs/convert/parquet` to the name",
            ENDINGS.join(", ")
        ));
    }
    let (subset, split) = choose(&subsets, part)?;
    let found = subset.splits.iter().find(|(name, _)| name == split);
    let Some((_, files)) = found else {
        let splits: Vec<&str> = subset.splits.iter().map(|(name, _)| name.as_str()).collect();
        return Err(format!("there is no split `{split}`; name one of {}", splits.join(", ")));
    };
    match files.iter().find(|name| ending(name).is_none()) {
        Some(other) => {
            Err(format!("{other}, a file of the split `{split}`, is of a kind that cannot be read"))
        }
        None if files.is_empty() => Err(format!("the split `{split}` has no files")),
        None => Ok(files.clone()),
    }
}

/// The subset and the split that are meant.
fn choose<'a>(subsets: &'a [Subset], part: &'a Part) -> Result<(&'a Subset, &'a str), String> {
    let named = |name: &str| subsets.iter().find(|subset| subset.name == name);
    let list = || subsets.iter().map(|subset| subset.name.as_str()).collect::<Vec<_>>().join(", ");
    let split = part.split.as_deref();
    if let Some(name) = &part.subset {
        let subset =
            named(name).ok_or_else(|| format!("there is no subset `{name}`; there is {}", list()))?;
        return Ok((subset, split.unwrap_or(USUAL_SPLIT)));
    }
    let usual = match subsets {
        [only] => Some(only),
        _ => subsets.iter().find(|subset| subset.is_default).or_else(|| named("default")),
    };
    let has = |subset: &Subset, split: &str| subset.splits.iter().any(|(name, _)| name == split);
    match (usual, split) {
        (Some(subset), None) => Ok((subset, USUAL_SPLIT)),
        (Some(subset), Some(split)) if has(subset, split) => Ok((subset, split)),
        (_, Some(word)) if named(word).is_some() => Ok((named(word).expect("just found"), USUAL_SPLIT)),
        (Some(subset), Some(split)) => Ok((subset, split)),
        (None, _) => Err(format!(
            "there are several subsets ({}); name one, as in `owner/name:{}/{}`",
            list(),
            subsets[0].name,
            split.unwrap_or(USUAL_SPLIT)
        )),
    }
}

/// The `configs` in the head of a card; none if it has no head, or no configs in it.
fn subsets_of_card(card: &str, names: &[String]) -> Result<Vec<Subset>, String> {
    #[derive(Deserialize)]
    struct Head {
        #[serde(default)]
        configs: Vec<Config>,
    }
    #[derive(Deserialize)]
    struct Config {
        config_name: Option<String>,
        data_files: Option<DataFiles>,
        data_dir: Option<String>,
        #[serde(default)]
        default: bool,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum DataFiles {
        One(String),
        Many(Vec<Entry>),
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Entry {
        Pattern(String),
        Split { split: String, path: Patterns },
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Patterns {
        One(String),
        Many(Vec<String>),
    }
    let Some(head) = head(card) else { return Ok(Vec::new()) };
    let head: Head = serde_saphyr::from_str(head).map_err(|error| {
        let error = error.to_string();
        format!("the head of its README.md cannot be read: {}", error.lines().next().unwrap_or_default())
    })?;
    let mut subsets = Vec::new();
    for config in head.configs {
        let folder =
            config.data_dir.as_deref().map(|folder| folder.trim_matches('/')).filter(|f| !f.is_empty());
        let within = |pattern: &str| match folder {
            Some(folder) => format!("{folder}/{pattern}"),
            None => pattern.trim_start_matches("./").to_owned(),
        };
        let entries = match config.data_files {
            None => None,
            Some(DataFiles::One(pattern)) => Some(vec![Entry::Pattern(pattern)]),
            Some(DataFiles::Many(entries)) => Some(entries),
        };
        let splits = match entries {
            None => by_names(names, &folder.map(|folder| format!("{folder}/")).unwrap_or_default()),
            Some(entries) => {
                let mut splits: Vec<(String, Vec<String>)> = Vec::new();
                for entry in entries {
                    let (split, patterns) = match entry {
                        Entry::Pattern(pattern) => (USUAL_SPLIT.to_owned(), vec![pattern]),
                        Entry::Split { split, path: Patterns::One(pattern) } => (split, vec![pattern]),
                        Entry::Split { split, path: Patterns::Many(patterns) } => (split, patterns),
                    };
                    let at = splits.iter().position(|(name, _)| *name == split).unwrap_or_else(|| {
                        splits.push((split, Vec::new()));
                        splits.len() - 1
                    });
                    for pattern in patterns {
                        add_matches(&within(&pattern), names, &mut splits[at].1)?;
                    }
                }
                splits
            }
        };
        let name = config.config_name.unwrap_or_else(|| "default".to_owned());
        subsets.push(Subset { name, is_default: config.default, splits });
    }
    Ok(subsets)
}

/// The YAML between the lines `---` with which a card begins.
fn head(card: &str) -> Option<&str> {
    let text = card.trim_start_matches('\u{feff}').strip_prefix("---")?;
    let text = text.strip_prefix("\r\n").or_else(|| text.strip_prefix('\n'))?;
    let end = if text.starts_with("---") { 0 } else { text.find("\n---")? + 1 };
    (end <= MAX_HEAD).then(|| &text[..end])
}

/// Adds the names that a pattern matches and that are not there yet, in order.
fn add_matches(pattern: &str, names: &[String], found: &mut Vec<String>) -> Result<(), String> {
    const WITHIN_FOLDERS: MatchOptions = MatchOptions {
        case_sensitive: true,
        require_literal_separator: true,
        require_literal_leading_dot: false,
    };
    let compiled = Pattern::new(pattern).ok().filter(|_| pattern.len() <= MAX_PATTERN);
    let compiled = compiled.ok_or_else(|| {
        format!("its README.md has a pattern of files that cannot be understood: {pattern:?}")
    })?;
    let mut matching: Vec<&String> =
        names.iter().filter(|name| compiled.matches_with(name, WITHIN_FOLDERS)).collect();
    matching.sort();
    for name in matching {
        if !found.contains(name) {
            found.push(name.clone());
        }
    }
    Ok(())
}

/// Splits by what files below a folder (`prefix`, with its `/`) and their folders are called. Of several
/// kinds of file only the one that most of them are is taken: a repository may hold the same examples twice.
fn by_names(names: &[String], prefix: &str) -> Vec<(String, Vec<String>)> {
    let mut data: Vec<&str> = names.iter().filter_map(|name| name.strip_prefix(prefix)).collect();
    data.retain(|name| is_data(name));
    data.sort_unstable();
    let of_kind = |kind: &str| data.iter().filter(|name| ending(name) == Some(kind)).count();
    let Some(kind) = ENDINGS.into_iter().rev().max_by_key(|kind| of_kind(kind)) else { return Vec::new() };
    data.retain(|name| ending(name) == Some(kind));
    type SplitOf = dyn Fn(&str) -> Option<String>;
    let ways: [&SplitOf; 4] = [
        &|name| shard_of(name),
        &|name| word(name.rsplit_once('/')?.0),
        &|name| word(name.rsplit('/').next()?),
        &|_| Some(USUAL_SPLIT.to_owned()),
    ];
    for split_of in ways {
        let mut splits: Vec<(String, Vec<String>)> = Vec::new();
        for name in &data {
            let Some(split) = split_of(name) else { continue };
            let name = format!("{prefix}{name}");
            match splits.iter_mut().find(|(other, _)| *other == split) {
                Some((_, files)) => files.push(name),
                None => splits.push((split, vec![name])),
            }
        }
        if !splits.is_empty() {
            return splits;
        }
    }
    Vec::new()
}

/// Whether a file holds examples rather than something about them.
fn is_data(name: &str) -> bool {
    const ABOUT: [&str; 4] = ["config.json", "dataset_info.json", "dataset_infos.json", "state.json"];
    let hidden = |part: &str| part.starts_with('.') || part.starts_with("__");
    let last = name.rsplit('/').next().unwrap_or_default();
    ending(name).is_some() && !name.split('/').any(hidden) && !ABOUT.contains(&last)
}

/// The split of `data/SPLIT-00000-of-00002...`.
fn shard_of(name: &str) -> Option<String> {
    let file = name.strip_prefix("data/").filter(|file| !file.contains('/'))?;
    let (split, rest) =
        file.split_once("-of-").and_then(|(head, rest)| Some((head.rsplit_once('-')?, rest)))?;
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    (is_number(split.1) && rest.get(..5).is_some_and(is_number)).then(|| split.0.to_owned())
}

/// The split that one of the words of a path means.
fn word(path: &str) -> Option<String> {
    let mut words = path.split(|c: char| "-._ /".contains(c) || c.is_ascii_digit());
    let meant = |word: &str| WORDS.iter().find(|(_, words)| words.contains(&word)).map(|(split, _)| *split);
    words.find_map(meant).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn found(names_: &str, card: Option<&str>, part: &str) -> Result<String, String> {
        let part = if part.is_empty() { Part::default() } else { Part::parse(part).unwrap() };
        files(&names(names_), card, &part).map(|files| files.join(" "))
    }

    #[test]
    fn without_a_card_names_of_shards_folders_and_files_tell_the_splits() {
        for (all, part, expected) in [
            (
                "README.md data/train-00001-of-00002.parquet data/train-00000-of-00002.parquet data/test-00000-of-00001.parquet",
                "",
                "data/train-00000-of-00002.parquet data/train-00001-of-00002.parquet",
            ),
            (
                "data/train_sft-00000-of-00001-ab12.parquet",
                "train_sft",
                "data/train_sft-00000-of-00001-ab12.parquet",
            ),
            ("train/a.jsonl train/b.jsonl dev/a.jsonl", "", "train/a.jsonl train/b.jsonl"),
            ("train/a.jsonl train/b.jsonl dev/a.jsonl", "validation", "dev/a.jsonl"),
            ("my-train-1.csv my-test.csv", "test", "my-test.csv"),
            ("train.jsonl.gz eval.jsonl.zst", "test", "eval.jsonl.zst"),
            ("trainer.jsonl other.jsonl .hidden/x.jsonl dataset_infos.json", "", "other.jsonl trainer.jsonl"),
            ("all.json all-1.parquet all-2.parquet", "", "all-1.parquet all-2.parquet"),
        ] {
            assert_eq!(found(all, None, part).as_deref(), Ok(expected), "{all}");
        }
        let error = found("train.jsonl test.jsonl", None, "validation").unwrap_err();
        assert!(error.contains("no split `validation`; name one of test, train"), "{error}");
        let error = found("script.py README.md", None, "").unwrap_err();
        assert!(error.contains("@refs/convert/parquet"), "{error}");
    }

    const CARD: &str = "---\nlicense: mit\nsize_categories: [n<1K]\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    \
                        path: main/train-*\n  - split: test\n    path: [main/test-*, extra/**]\n- config_name: socratic\n  data_files: \
                        socratic/*.jsonl\n---\n# Text\n---\n";

    #[test]
    fn a_card_names_subsets_and_the_patterns_of_their_splits() {
        let all = "README.md extra/a/b.parquet main/test-1.parquet main/train-1.parquet main/x/train-1.parquet socratic/a.jsonl";
        assert_eq!(found(all, Some(CARD), "main/train").unwrap(), "main/train-1.parquet");
        assert_eq!(found(all, Some(CARD), "main").unwrap(), "main/train-1.parquet");
        assert_eq!(found(all, Some(CARD), "main/test").unwrap(), "main/test-1.parquet extra/a/b.parquet");
        assert_eq!(found(all, Some(CARD), "socratic").unwrap(), "socratic/a.jsonl");
        for (part, words) in [
            ("", "several subsets (main, socratic); name one, as in `owner/name:main/train`"),
            ("test", "name one, as in `owner/name:main/test`"),
            ("other/train", "no subset `other`; there is main, socratic"),
            ("socratic/test", "no split `test`; name one of train"),
        ] {
            let error = found(all, Some(CARD), part).unwrap_err();
            assert!(error.contains(words), "{part}: {error}");
        }
        let with_default = CARD.replace("config_name: main", "config_name: main\n  default: true");
        assert_eq!(found(all, Some(&with_default), "test").unwrap(), "main/test-1.parquet extra/a/b.parquet");
        let by_folder = "---\nconfigs:\n- config_name: a\n  data_dir: main\n---\n";
        assert_eq!(found(all, Some(by_folder), "").unwrap(), "main/train-1.parquet main/x/train-1.parquet");
    }

    #[test]
    fn cards_that_say_nothing_or_nonsense() {
        for card in ["", "# Text", "---\nlicense: mit\n---\n", "---\n---\n", "--- no head\n---\n"] {
            assert_eq!(found("train.jsonl", Some(card), "").unwrap(), "train.jsonl", "{card:?}");
        }
        for (card, words) in [
            ("---\nconfigs: [\n---\n", "the head of its README.md cannot be read"),
            ("---\nconfigs:\n- data_files: 'a**b'\n---\n", "a pattern of files that cannot be understood"),
            ("---\nconfigs:\n- data_files: x.bin\n---\n", "is of a kind that cannot be read"),
            ("---\nconfigs:\n- data_files: ../secret.jsonl\n---\n", "no files with examples"),
        ] {
            let error = found("train.jsonl x.bin", Some(card), "").unwrap_err();
            assert!(error.contains(words), "{card:?}: {error}");
        }
    }
}
