//! The README and the guide are true: every command in them is run, and prints what its page shows.
//!
//! CONTRIBUTING.md says how pages are written for this.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use fancy_regex::{Captures, Regex};
use serde_json::Value;
use tempfile::{TempDir, tempdir};

/// Stands for the folder in which a page's commands are run.
const HOME: &str = "/home/me";
/// What a block can be, by its info string, beside `sh`: printed, not run by this test, or a file's contents.
const OTHERS: [&str; 7] = ["text", "console", "python", "yaml", "json", "toml", "dockerfile"];

/// A page of the guide, or the README.
struct Page {
    /// Below the repository's root.
    name: String,
    text: String,
}

/// A fenced block of a page.
struct Block {
    /// Of its first line of text, from 1.
    line: usize,
    info: String,
    lines: Vec<String>,
    /// That nothing but empty lines stand between the block before and this one.
    follows: bool,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn page(name: &str) -> Page {
    Page { name: name.to_owned(), text: fs::read_to_string(root().join(name)).unwrap() }
}

fn pages() -> Vec<Page> {
    let guide = fs::read_dir(root().join("docs/guide")).unwrap();
    let mut names: Vec<String> = guide
        .map(|entry| format!("docs/guide/{}", entry.unwrap().file_name().to_str().unwrap()))
        .filter(|name| name.ends_with(".md"))
        .collect();
    names.sort();
    names.insert(0, "README.md".to_owned());
    names.iter().map(|name| page(name)).collect()
}

impl Page {
    fn blocks(&self) -> Vec<Block> {
        let mut blocks: Vec<Block> = Vec::new();
        let mut open = false;
        let mut only_empty = false;
        for (number, line) in (1..).zip(self.text.lines()) {
            match line.strip_prefix("```") {
                Some(info) if !open => {
                    let info = info.trim().to_owned();
                    blocks.push(Block { line: number + 1, info, lines: Vec::new(), follows: only_empty });
                    open = true;
                }
                Some(_) => (open, only_empty) = (false, true),
                None if open => blocks.last_mut().unwrap().lines.push(line.to_owned()),
                None => only_empty &= line.trim().is_empty(),
            }
        }
        assert!(!open, "{}: a block that does not end", self.name);
        blocks
    }

    /// What is wrong with the page: its form, its commands, and what it shows of their output.
    fn faults(&self) -> Vec<String> {
        let blocks = self.blocks();
        let mut faults: Vec<String> = blocks
            .iter()
            .filter(|block| block.info != "sh" && !OTHERS.contains(&block.info.as_str()))
            .map(|block| {
                format!(
                    "{}:{}: the block says {:?}; use sh or one of {OTHERS:?}",
                    self.name, block.line, block.info
                )
            })
            .collect();
        let folder = stand_ins();
        let home = folder.path().canonicalize().unwrap();
        for (index, block) in blocks.iter().enumerate().filter(|(_, block)| block.info == "sh") {
            let shown = blocks.get(index + 1).filter(|next| next.info == "text" && next.follows);
            faults.extend(self.faults_of(block, shown, &home));
        }
        faults
    }

    fn faults_of(&self, block: &Block, shown: Option<&Block>, home: &Path) -> Vec<String> {
        let mut faults = Vec::new();
        let refused = shown.is_some_and(|shown| shown.lines.iter().any(|line| line.starts_with("error:")));
        let commands = commands(block);
        let mut all = String::new();
        for (index, (line, command)) in commands.iter().enumerate() {
            let code = if refused && index + 1 == commands.len() { 2 } else { 0 };
            let (printed, ended) = run(command, home);
            if ended != Some(code) {
                let place = format!("{}:{line}", self.name);
                faults.push(format!("{place}: {command}\nends with {ended:?}, not {code}:\n{printed}"));
            }
            all += &printed;
        }
        if let Some(shown) = shown {
            let text = shown.lines.join("\n");
            if !agree(&text, &all) {
                faults.push(format!(
                    "{}:{}: shows\n{text}\nbut this is printed:\n{all}",
                    self.name, shown.line
                ));
            }
        }
        faults
    }
}

/// The commands of a block, each with its line; one that ends in a backslash goes on in the next line.
fn commands(block: &Block) -> Vec<(usize, String)> {
    let mut commands: Vec<(usize, String)> = Vec::new();
    let mut goes_on = false;
    for (line, text) in (block.line..).zip(&block.lines) {
        match commands.last_mut() {
            Some((_, command)) if goes_on => *command = format!("{command}\n{text}"),
            _ => commands.push((line, text.clone())),
        }
        goes_on = text.ends_with('\\');
    }
    commands.retain(|(_, command)| !command.trim().is_empty() && !command.trim_start().starts_with('#'));
    commands
}

/// Runs a command of a page. Returns what a person sees, and the exit code.
fn run(command: &str, home: &Path) -> (String, Option<i32>) {
    let binary = Path::new(env!("CARGO_BIN_EXE_luthier")).parent().unwrap();
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let paths = std::iter::once(binary.to_owned()).chain(std::env::split_paths(&paths));
    let output = Command::new("sh")
        .args(["-c", &format!("exec 2>&1\n{command}")])
        .current_dir(home)
        .env("PATH", std::env::join_paths(paths).unwrap())
        .env("NO_COLOR", "1")
        .env("HF_HUB_OFFLINE", "1")
        .env("HF_HOME", home.join("hf"))
        .stdin(Stdio::null())
        .output()
        .expect("there is a shell");
    let printed = String::from_utf8_lossy(&output.stdout).replace(home.to_str().unwrap(), HOME);
    (printed, output.status.code())
}

/// A folder with what the pages take for granted: the example's model under the names of models that people
/// have, sixty chats, twenty held-out ones, and a run file.
fn stand_ins() -> TempDir {
    let folder = tempdir().unwrap();
    let example = root().join("example");
    for name in ["model", "Llama-3.2-1B-Instruct", "Llama-3.1-8B-Instruct"] {
        let model = folder.path().join(name);
        fs::create_dir(&model).unwrap();
        for file in fs::read_dir(example.join("model")).unwrap().map(Result::unwrap) {
            fs::copy(file.path(), model.join(file.file_name())).unwrap();
        }
    }
    for (name, of, count) in [("chats.jsonl", "train.jsonl", 60), ("held-out.jsonl", "eval.jsonl", 20)] {
        let text = fs::read_to_string(example.join(of)).unwrap();
        let lines: String = text.split_inclusive('\n').take(count).collect();
        fs::write(folder.path().join(name), lines).unwrap();
    }
    let run = "model: model\ndata:\n  train: chats.jsonl\n  eval: held-out.jsonl\noutput: run\n";
    fs::write(folder.path().join("run.yaml"), run).unwrap();
    folder
}

/// Whether a page's text is what was printed: apart from spaces, from numbers that are measured, and from
/// what `...` stands for.
fn agree(shown: &str, printed: &str) -> bool {
    // A line of `...` stands for no line, too.
    let shown = without_measures(shown).replace("\n...\n", "...\n");
    let printed = without_measures(printed);
    let pieces: Vec<&str> = shown.split("...").collect();
    let [first, others @ ..] = pieces.as_slice() else { unreachable!("split gives one piece at least") };
    let Some(mut rest) = printed.strip_prefix(first) else { return false };
    let Some((last, between)) = others.split_last() else { return rest.is_empty() };
    for piece in between {
        let Some((_, behind)) = rest.split_once(piece) else { return false };
        rest = behind;
    }
    rest.ends_with(last)
}

/// Text in which every number that is not whole or has a unit is `#`, and spaces are single.
fn without_measures(text: &str) -> String {
    let number = r"\d+(\.\d+)?(e-?\d+)?( ?([KMGT]?i?B|[KMG]|ms|s|min|h|tokens/s)(?![\w-])|(?: ?%))?";
    let number = Regex::new(number).unwrap();
    let lines = text.lines().map(|line| {
        let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
        let line = number.replace_all(&line, |found: &Captures<'_>| {
            let whole = found[0].bytes().all(|byte| byte.is_ascii_digit());
            if whole { found[0].to_owned() } else { "#".to_owned() }
        });
        // `1 min 20 s`, `1.2 K tokens/s`.
        line.replace("# #", "#").replace("# tokens/s", "#")
    });
    let lines: Vec<String> = lines.collect();
    lines.join("\n").trim().to_owned()
}

#[test]
fn every_command_of_the_guide_runs_and_prints_what_its_page_shows() {
    let pages = pages();
    let faults: Vec<String> = thread::scope(|scope| {
        let pages: Vec<_> = pages.iter().map(|page| scope.spawn(|| page.faults())).collect();
        pages.into_iter().flat_map(|page| page.join().unwrap()).collect()
    });
    for page in &pages {
        for block in page.blocks().iter().filter(|block| block.info == "console") {
            commands(block)
                .iter()
                .for_each(|(line, command)| println!("not run: {}:{line}: {command}", page.name));
        }
    }
    assert!(faults.is_empty(), "{} faults:\n\n{}", faults.len(), faults.join("\n\n"));
}

#[test]
fn measured_numbers_may_differ_and_nothing_else_may() {
    for (shown, printed) in [
        ("steps 60 of 3 rows, 8.02 K tokens in 59 s", "steps  60 of 3 rows, 7 K tokens in 1 min 2 s\n"),
        ("loss 1.7e-3\n...\nthe end", "loss 0.4\nmore\nand more\nthe end"),
        ("best (step ...)", "best (step 46)"),
        ("one\n...\ntwo", "one\ntwo"),
        ("32.5 MiB at 1.17 K tokens/s, 9 %", "1 GiB at 700 tokens/s, 9.5 %"),
    ] {
        assert!(agree(shown, printed), "{shown}: {printed}");
    }
    for (shown, printed) in [
        ("steps 60", "steps 61"),
        ("one", "one\ntwo"),
        ("...\ntwo", "two\nthree"),
        ("a ... b ... c", "a c b"),
        ("run-60", "run-61"),
        ("a", ""),
    ] {
        assert!(!agree(shown, printed), "{shown}: {printed}");
    }
}

/// The names in backticks in the first column of the tables below a heading.
fn first_column(page: &Page, heading: &str) -> BTreeSet<String> {
    let below = page.text.lines().skip_while(|line| *line != heading).skip(1);
    let section = below.take_while(|line| !line.starts_with("## "));
    let cells = section.filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

#[test]
fn every_setting_of_trl_and_peft_has_a_row_and_every_row_is_such_a_setting() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/settings.json");
    let lists: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let page = page("docs/guide/coming-from.md");
    for (class, heading) in [("LoraConfig", "## PEFT: `LoraConfig`"), ("SFTConfig", "## TRL: `SFTConfig`")] {
        let names = lists[class].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned());
        let (names, rows) = (names.collect::<BTreeSet<_>>(), first_column(&page, heading));
        let missing: Vec<_> = names.difference(&rows).collect();
        let unknown: Vec<_> = rows.difference(&names).collect();
        assert!(
            missing.is_empty() && unknown.is_empty(),
            "{class}: without a row {missing:?}; unknown {unknown:?}"
        );
    }
    for (package, version) in lists["versions"].as_object().unwrap() {
        let version = version.as_str().unwrap();
        assert!(page.text.contains(&format!("{package} {version}")), "the page is about {package} {version}");
    }
}

/// The keys of the run file that the guide shows, such as `data.max_length`; some stand in comments.
fn keys() -> BTreeSet<String> {
    let page = page("docs/guide/run-file.md");
    let blocks = page.blocks();
    let shown = blocks.iter().find(|block| block.info == "yaml").expect("the page shows the run file");
    let key = Regex::new("^(  )?(# )?([a-z_0-9]+):").unwrap();
    let mut section = String::new();
    let mut keys = BTreeSet::new();
    for found in shown.lines.iter().filter_map(|line| key.captures(line).unwrap()) {
        match found.get(1) {
            None => section = found[3].to_owned(),
            Some(_) => drop(keys.insert(format!("{section}.{}", &found[3]))),
        }
    }
    keys
}

#[test]
fn every_setting_that_the_guide_names_is_one() {
    let keys = keys();
    assert!(keys.contains("data.max_length") && keys.contains("training.seed"), "{keys:?}");
    let named = Regex::new(r"`((?:data|adapter|optimizer|schedule|training)\.[a-z_0-9]+)(?=[`:=])").unwrap();
    for page in pages() {
        let mut in_block = false;
        for (line, text) in (1..).zip(page.text.lines()) {
            in_block ^= text.starts_with("```");
            if in_block {
                continue;
            }
            for found in named.captures_iter(text).map(|found| found.unwrap()[1].to_owned()) {
                assert!(keys.contains(&found), "{}:{line}: there is no setting {found}", page.name);
            }
        }
    }
}

/// The anchors that a page has: those of its headings, as GitHub makes them, and its own.
fn anchors(page: &Page) -> BTreeSet<String> {
    let headings = page.text.lines().filter(|line| line.starts_with('#')).map(|line| {
        let kept = line.trim_start_matches('#').trim().chars();
        let kept = kept.filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
        kept.collect::<String>().to_lowercase().replace(' ', "-")
    });
    let own = page.text.split("<a id=\"").skip(1).filter_map(|rest| Some(rest.split_once('"')?.0.to_owned()));
    headings.chain(own).collect()
}

#[test]
fn every_link_between_pages_leads_somewhere() {
    let link = Regex::new(r"\]\(([^)\s#]*)(?:#([^)\s]+))?\)").unwrap();
    for page in pages() {
        for found in link.captures_iter(&page.text).map(Result::unwrap) {
            let path = match &found[1] {
                "" => page.name.clone(),
                web if web.starts_with("http") => continue,
                file => Path::new(&page.name).with_file_name(file).to_str().unwrap().to_owned(),
            };
            assert!(root().join(&path).exists(), "{}: {}: there is no {path}", page.name, &found[0]);
            let Some(anchor) = found.get(2) else { continue };
            let there = Page { text: fs::read_to_string(root().join(&path)).unwrap(), name: path };
            let named = anchors(&there).contains(anchor.as_str());
            assert!(named, "{}: {}: there is no such heading", page.name, &found[0]);
        }
    }
}
