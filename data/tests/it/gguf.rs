//! Tokenizers of GGUF files: the ids of llama.cpp, the way back from a folder, and lists that lie.

use std::path::{Path, PathBuf};

use data::{GgufTokenizer, Tokenizer};
use serde::Deserialize;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// `gguf.json`, which `make_gguf_tokenizers.py` makes.
#[derive(Deserialize)]
struct Made {
    texts: Vec<String>,
    byte_level: Lists,
    sentencepiece: Lists,
}

#[derive(Deserialize)]
struct Lists {
    tokens: Vec<String>,
    types: Vec<i32>,
    #[serde(default)]
    merges: Vec<String>,
    #[serde(default)]
    scores: Vec<f32>,
    ids: std::collections::BTreeMap<String, Vec<Vec<u32>>>,
}

fn made() -> Made {
    serde_json::from_slice(&std::fs::read(fixtures().join("gguf.json")).unwrap()).unwrap()
}

fn byte_level(pre: &str) -> GgufTokenizer {
    let Lists { tokens, types, merges, .. } = made().byte_level;
    GgufTokenizer {
        model: "gpt2".to_owned(),
        pre: Some(pre.to_owned()),
        tokens,
        types,
        merges,
        bos: Some(0),
        eos: Some(1),
        ..GgufTokenizer::default()
    }
}

fn sentencepiece() -> GgufTokenizer {
    let Lists { tokens, types, scores, .. } = made().sentencepiece;
    GgufTokenizer {
        model: "llama".to_owned(),
        tokens,
        types,
        scores,
        bos: Some(1),
        eos: Some(2),
        unknown: Some(0),
        ..GgufTokenizer::default()
    }
}

fn read(lists: &GgufTokenizer) -> Result<Tokenizer, String> {
    lists.tokenizer(Path::new("a.gguf")).map_err(|error| error.to_string())
}

fn compare(case: &str, lists: &GgufTokenizer, texts: &[String], ids: &[Vec<u32>], wrong: &mut Vec<String>) {
    let tokenizer = read(lists).unwrap();
    for (text, ids) in texts.iter().zip(ids) {
        let got = tokenizer.encode(text, true).unwrap().ids;
        if got != *ids {
            wrong.push(format!("{case}: {text:?}: {got:?}, not {ids:?}"));
        }
        let shown = tokenizer.decode(&got, false).unwrap();
        // Behind a token of its own SentencePiece begins anew, with a space.
        let is_whole = shown.contains(text.trim()) || text.contains("<|end|>");
        assert!(is_whole, "{case}: {text:?} comes back as {shown:?}");
    }
}

#[test]
fn texts_are_cut_into_the_ids_of_llama_cpp() {
    let (made, mut wrong) = (made(), Vec::new());
    assert_eq!(made.byte_level.ids.len(), 12);
    for (way, ids) in &made.byte_level.ids {
        compare(way, &byte_level(way), &made.texts, ids, &mut wrong);
    }
    for (prefixed, ids) in &made.sentencepiece.ids {
        let lists = GgufTokenizer { add_space_prefix: Some(prefixed == "true"), ..sentencepiece() };
        compare(&format!("a space before: {prefixed}"), &lists, &made.texts, ids, &mut wrong);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_the_lists_say_of_tokens_is_kept() {
    let templates = vec![("default".to_owned(), "{{ messages }}".to_owned())];
    let lists = GgufTokenizer { templates, other_ends: vec![2], padding: Some(1), ..byte_level("qwen2") };
    let tokenizer = read(&lists).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.pad()), (Some(0), Some(1), Some(1)));
    assert_eq!(tokenizer.ends(), [1, 2]);
    assert_eq!(tokenizer.templates(), lists.templates);
    assert!(tokenizer.is_special(1) && !tokenizer.is_special(2));
    let sentencepiece = read(&sentencepiece()).unwrap();
    assert_eq!(sentencepiece.unknown(), Some(0));
    let none = read(&GgufTokenizer { add_bos: Some(false), add_eos: Some(true), ..self::sentencepiece() });
    let encoded = none.unwrap().encode("a", true).unwrap();
    assert_eq!((encoded.added_front, encoded.added_back, encoded.ids.last()), (0, 1, Some(&2)));
}

/// A folder as lists and as a folder again is the same tokenizer.
#[test]
fn a_folder_becomes_the_lists_that_it_came_from() {
    let folder = fixtures().join("tokenizer");
    let original = Tokenizer::load(&folder).unwrap();
    let count = original.vocab_size();
    let lists = GgufTokenizer::of_folder(&folder, count + 3).unwrap();
    assert_eq!((&*lists.model, lists.pre.as_deref()), ("gpt2", Some("gpt-2")));
    assert_eq!((lists.tokens.len(), lists.types.len()), (count + 3, count + 3));
    assert_eq!((&*lists.tokens[count], lists.types[count]), (&*format!("[PAD{count}]"), 5));
    assert_eq!((lists.bos, lists.eos), (original.bos(), original.eos()));
    assert_eq!(lists.add_bos, Some(true));
    let too_few = GgufTokenizer::of_folder(&folder, 5).unwrap_err().to_string();
    assert!(too_few.contains("the model has rows for 5"), "{too_few}");
    for lists in [byte_level("smollm"), byte_level("llama-bpe"), sentencepiece()] {
        let folder = tempfile::tempdir().unwrap();
        let json = lists.tokenizer_json(Path::new("a.gguf")).unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
        let config = serde_json::to_string(&lists.tokenizer_config()).unwrap();
        std::fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
        let again = GgufTokenizer::of_folder(folder.path(), lists.tokens.len()).unwrap();
        assert_eq!((&again.tokens, &again.types), (&lists.tokens, &lists.types));
        assert_eq!((&again.model, &again.merges), (&lists.model, &lists.merges));
        assert_eq!((again.bos, again.eos, again.unknown), (lists.bos, lists.eos, lists.unknown));
        assert_eq!(again.add_space_prefix, (lists.model == "llama").then_some(true));
    }
}

#[test]
fn a_way_of_cutting_text_without_a_name_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let lists = byte_level("gpt-2");
    let mut json = lists.tokenizer_json(Path::new("a.gguf")).unwrap();
    json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "[a-z]+".into();
    std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    let told = GgufTokenizer::of_folder(folder.path(), lists.tokens.len()).unwrap_err().to_string();
    assert!(told.contains("in a way of its own, for which llama.cpp has no name"), "{told}");
}

#[test]
fn lists_that_contradict_each_other_are_refused() {
    type Change = fn(&mut GgufTokenizer);
    let cases: [(Change, &str); 15] = [
        (|l| l.tokens.clear(), "tokens is missing"),
        (|l| l.tokens[5] = l.tokens[4].clone(), "as 4 and as 5"),
        (|l| l.types.truncate(9), "token_type has"),
        (|l| l.types = vec![1; 100_000], "token_type has 100000 entries"),
        (|l| l.scores = vec![0.0], "scores has 1 entries"),
        (|l| l.bos = Some(u32::MAX), "bos_token_id is 4294967295"),
        (|l| l.eos = Some(9_999), "eos_token_id is 9999"),
        (|l| l.padding = Some(9_999), "padding_token_id"),
        (|l| l.other_ends = vec![9_999], "eot_token_id"),
        (|l| l.merges[3] = "ab".into(), "merges[3] is not two tokens"),
        (|l| l.merges[3] = "a Żb".into(), "merges[3] joins or makes"),
        (|l| l.merges[3] = "! ~".into(), "merges[3] joins or makes"),
        (|l| l.pre = Some("kimi-k2".into()), "tokenizer.ggml.pre is \"kimi-k2\""),
        (|l| l.model = "bert".into(), "tokenizer.ggml.model is \"bert\""),
        (
            |l| {
                l.add_bos = Some(true);
                l.add_eos = Some(true);
                l.eos = None;
            },
            "eos_token_id is missing",
        ),
    ];
    for (change, says) in cases {
        let mut lists = byte_level("gpt-2");
        change(&mut lists);
        let told = read(&lists).map(|_| ()).unwrap_err();
        assert!(told.contains(says) && told.starts_with("a.gguf: "), "{told}, not {says}");
    }
    let mut lists = sentencepiece();
    lists.scores[7] = f32::NAN;
    assert!(read(&lists).map(|_| ()).unwrap_err().contains("scores[7] is no number"));
    lists.scores.clear();
    assert!(read(&lists).map(|_| ()).unwrap_err().contains("scores is missing"));
}
