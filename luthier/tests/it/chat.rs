//! `chat`: its commands, and how it ends an answer; on a terminal, editing and what is kept of it.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::luthier;
use crate::support::{succeed, tiny_model, write};

fn folder() -> TempDir {
    let folder = tempdir().unwrap();
    tiny_model(folder.path());
    folder
}

fn chat(folder: &Path, arguments: &[&str], lines: &str) -> Output {
    let limit = if arguments.contains(&"--max-tokens") { &[][..] } else { &["--max-tokens", "6"] };
    let mut child = luthier(folder)
        .args(["chat", "--model", "model", "--precision", "f32"])
        .args(limit)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may leave before it has read everything.
    let _ = child.stdin.take().unwrap().write_all(lines.as_bytes());
    child.wait_with_output().unwrap()
}

/// Stdout and stderr of a conversation that works.
fn talk(folder: &Path, arguments: &[&str], lines: &str) -> (String, String) {
    let output = chat(folder, arguments, lines);
    let [said, told] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(output.status.success(), "{told}");
    (said, told)
}

#[test]
fn a_conversation_is_saved_as_a_line_of_messages() {
    let folder = folder();
    fs::write(folder.path().join("kept.jsonl"), "{\"text\": \"no line's end\"}").unwrap();
    talk(
        folder.path(),
        &[],
        "/system Be kind.\none\\\ntwo\n/save kept.jsonl\n/system -\n/system\n/save kept.jsonl\n",
    );
    let kept = fs::read_to_string(folder.path().join("kept.jsonl")).unwrap();
    let lines: Vec<Value> = kept.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["text"], "no line's end");
    let messages = lines[1]["messages"].as_array().unwrap();
    assert_eq!(messages[0], json!({"role": "system", "content": "Be kind."}));
    assert_eq!(messages[1], json!({"role": "user", "content": "one\ntwo"}), "a line that ends in \\ goes on");
    assert_eq!((messages.len(), &messages[2]["role"]), (3, &json!("assistant")));
    assert_eq!(lines[2]["messages"].as_array().unwrap().len(), 2, "the system's message was taken away");
    for (said, words) in [("/save\n", "/save needs a file"), ("/save x\n", "nothing to save")] {
        let output = chat(folder.path(), &[], said);
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && told.contains(words), "{told}");
    }
    assert!(!folder.path().join("x").exists());
}

#[test]
fn another_answer_is_drawn_from_other_random_numbers() {
    let folder = folder();
    let sampling = ["--temperature", "2", "--seed", "3"];
    let (said, _) = talk(folder.path(), &sampling, "hello\n/regenerate\n/regenerate\n/save k.jsonl\n");
    let (again, _) = talk(folder.path(), &sampling, "hello\n/regenerate\n/regenerate\n");
    assert_eq!(said, again, "the same seed says the same");
    let kept: Value =
        serde_json::from_str(&fs::read_to_string(folder.path().join("k.jsonl")).unwrap()).unwrap();
    let messages = kept["messages"].as_array().unwrap();
    let last = messages[1]["content"].as_str().unwrap();
    assert!(
        messages.len() == 2 && said.ends_with(&format!("{last}\n")),
        "the last answer takes the place of the others"
    );
    let (first, _) = talk(folder.path(), &sampling, "hello\n");
    assert!(said.starts_with(&first) && !last.eq(first.trim_end_matches('\n')));
    for (arguments, said, words) in [
        (&[][..], "hello\n/regenerate\n", "the answer would be the same: the temperature is 0"),
        (&sampling[..], "/regenerate\n", "there is no answer yet"),
    ] {
        let output = chat(folder.path(), arguments, said);
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && told.contains(words), "{told}");
    }
}

#[test]
fn what_cut_an_answer_off_is_said() {
    let folder = folder();
    // From seed to seed, one goes on to the end of what it may.
    let cut = |tokens: &str, words: &str| {
        (0..20).any(|seed: u32| {
            let seed = seed.to_string();
            let arguments = ["--max-tokens", tokens, "--temperature", "1", "--top-k", "5", "--seed", &seed];
            talk(folder.path(), &arguments, "hello\n").1.contains(words)
        })
    };
    assert!(cut("5", "(cut off by --max-tokens 5)"));
    assert!(cut("100000", "(cut off: the model's context of 256 tokens is full; /reset begins anew)"));
}

/// A template whose end of turn is these words, which are no token.
fn template_that_ends_in(folder: &Path, end: &str) {
    let template = format!(
        "{{% for m in messages %}}{{{{ m.content }}}}{{% if m.role == 'assistant' %}}{end}{{% endif %}}{{% endfor %}}"
    );
    fs::write(folder.join("t.jinja"), template).unwrap();
}

#[test]
fn an_end_of_turn_that_is_no_token_ends_the_answer() {
    let folder = folder();
    let path = folder.path();
    write(&path.join("m.json"), &json!([{"role": "user", "content": "hello"}]));
    let command = "generate --model model --precision f32 --max-tokens 40 --json --messages m.json --chat-template t.jinja";
    let generate = || -> Value {
        let (told, _) = succeed(path, &command.split(' ').collect::<Vec<_>>());
        serde_json::from_str(&told).unwrap()
    };
    template_that_ends_in(path, "");
    let whole = generate();
    let text: Vec<char> = whole["text"].as_str().unwrap().chars().collect();
    // Two letters in the middle become the end.
    let plain = |c: &char| !c.is_whitespace() && !c.is_control() && !"{}%#'\"\\".contains(*c);
    let at = (4..text.len() - 1).find(|&at| text[at..at + 2].iter().all(plain)).expect("two such letters");
    let end: String = text[at..at + 2].iter().collect();
    template_that_ends_in(path, &end);
    let cut = generate();
    let expected = whole["text"].as_str().unwrap().split(&end).next().unwrap();
    assert_eq!((cut["text"].as_str(), &cut["finish_reason"]), (Some(expected), &json!("stop")));
    let [all, kept] = [&whole, &cut].map(|told| told["token_ids"].as_array().unwrap().clone());
    assert!(kept.len() < all.len() && all.starts_with(&kept));
    let (said, told) = talk(path, &["--chat-template", "t.jinja", "--max-tokens", "40"], "hello\n");
    assert_eq!(said, format!("{expected}\n"));
    assert!(!told.contains("cut off"), "{told}");
}

#[cfg(unix)]
mod on_a_terminal {
    use std::os::unix::fs::PermissionsExt;

    use rexpect::session::{PtySession, spawn_command};

    use super::*;

    /// Pasting is asked to be marked, when a line begins.
    const PROMPT: &str = "\u{1b}[?2004h";

    fn begin(folder: &Path, arguments: &[&str]) -> PtySession {
        let mut command = luthier(folder);
        command.args(["chat", "--model", "model", "--precision", "f32", "--max-tokens", "6"]).args(arguments);
        command.env("XDG_STATE_HOME", folder.join("state")).env("TERM", "xterm");
        let mut session = spawn_command(command, Some(60_000)).unwrap();
        session.exp_string("/help").unwrap();
        session.exp_string("> ").unwrap();
        session
    }

    /// Types keys and waits for words.
    fn press(session: &mut PtySession, keys: &str, words: &str) {
        session.send(keys).unwrap();
        session.flush().unwrap();
        session.exp_string(words).unwrap_or_else(|error| panic!("{keys:?}: {error}"));
    }

    fn leave(session: &mut PtySession, keys: &str) {
        session.send(keys).unwrap();
        session.flush().unwrap();
        session.exp_eof().unwrap();
    }

    #[test]
    fn lines_are_edited_and_kept_for_their_owner_alone() {
        let folder = folder();
        let history = folder.path().join("state/luthier/history");
        let mut session = begin(folder.path(), &[]);
        press(&mut session, "hexx\x7f\x7fllo\r", PROMPT);
        // A block that is pasted is one text; what begins with a space is not kept.
        press(&mut session, "\x1b[200~two\rlines\x1b[201~\r", PROMPT);
        press(&mut session, " secret\r", PROMPT);
        press(&mut session, "/save kept.jsonl\r", "saved 6 messages");
        session.exp_string(PROMPT).unwrap();
        press(&mut session, "half\x03", "Ctrl-C again");
        leave(&mut session, "\x03");
        let kept: Value =
            serde_json::from_str(&fs::read_to_string(folder.path().join("kept.jsonl")).unwrap()).unwrap();
        let said: Vec<&str> = [0, 2, 4].map(|n| kept["messages"][n]["content"].as_str().unwrap()).to_vec();
        assert_eq!(said, ["hello", "two\nlines", "secret"]);
        let text = fs::read_to_string(&history).unwrap();
        assert!(text.contains("hello") && !text.contains("secret") && !text.contains("half"), "{text}");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&history), mode(history.parent().unwrap())), (0o600, 0o700));

        // The next conversation knows the last line of this one.
        let mut session = begin(folder.path(), &[]);
        press(&mut session, "\x1b[A\r", "there is nothing to save yet");
        leave(&mut session, "\x04");
    }

    #[test]
    fn nothing_is_kept_where_that_is_asked_for() {
        let folder = folder();
        let mut session = begin(folder.path(), &["--no-history"]);
        press(&mut session, "hello\r", PROMPT);
        leave(&mut session, "\x04");
        assert!(!folder.path().join("state").exists());
    }
}
