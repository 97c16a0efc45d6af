//! Every format from file to examples, and what the report says.

use data::{Chat, DataSpec, Dataset, Format, OnOverflow, SourceSpec, Sources, TrainOn};

use crate::support::{Files, load, load_as, masked, tokenizer, tokenizer_without_template};

/// All examples, masked, of JSON lines under default settings.
fn shown(lines: &str) -> String {
    let dataset = load(lines, |_| {}).unwrap();
    dataset.examples.iter().map(|example| masked(example, &tokenizer()) + "\n").collect()
}

fn found(lines: &str) -> Format {
    let report = load(lines, |_| {}).unwrap().report;
    assert!(report.files[0].found);
    report.files[0].format
}

#[test]
fn a_format_is_found_by_its_keys() {
    let cases = [
        (
            r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#,
            Format::Messages,
        ),
        (
            r#"{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}"#,
            Format::Sharegpt,
        ),
        (r#"{"instruction": "a", "input": "", "output": "b"}"#, Format::Alpaca),
        (r#"{"question": "a", "answer": "b"}"#, Format::Alpaca),
        (r#"{"prompt": "a", "completion": "b"}"#, Format::Completion),
        (r#"{"text": "a"}"#, Format::Text),
        (r#"{"input_ids": [1, 5], "labels": [-100, 5]}"#, Format::Tokenized),
    ];
    for (line, format) in cases {
        assert_eq!(found(line), format, "{line}");
    }
}

#[test]
fn sharegpt_tags_become_roles_and_calls() {
    insta::assert_snapshot!(shown(
        r#"{"system": "Be brief.", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}
           {"conversations": [{"role": "user", "content": "Role?"}, {"role": "assistant", "content": "Content."}]}"#
            .replace("\n           ", "\n")
            .as_str()
    ), @r"
    <|im_start|>system⏎
    Be brief.<|im_end|>⏎
    <|im_start|>user⏎
    Hi<|im_end|>⏎
    <|im_start|>assistant⏎
    [Hello.<|im_end|>⏎
    ]
    <|im_start|>user⏎
    Role?<|im_end|>⏎
    <|im_start|>assistant⏎
    [Content.<|im_end|>⏎
    ]
    ");
    let call = r#"{"tools": "[{\"name\": \"f\"}]", "conversations": [{"from": "human", "value": "Weather?"},
        {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"x\": 1}}"},
        {"from": "observation", "value": "rain"}, {"from": "gpt", "value": "It rains."}]}"#
        .replace('\n', " ");
    let dataset = load(&call, |spec| spec.chat_template = Some("qwen2.5".into())).unwrap();
    let text = masked(&dataset.examples[0], &tokenizer());
    assert!(
        text.contains(
            r#"[<tool_call>⏎
{"name": "f", "arguments": {"x": 1}}⏎
</tool_call><|im_end|>"#
        ),
        "{text}"
    );
    assert!(text.contains("<tools>⏎\n{\"name\": \"f\"}⏎\n</tools>"), "{text}");
}

#[test]
fn alpaca_history_is_earlier_turns_and_input_stands_below_the_instruction() {
    insta::assert_snapshot!(shown(
        r#"{"instruction": "Add", "input": "1 and 2", "output": "3", "system": "Count.", "history": [["Hi", "Hello."]]}"#
    ), @r"
    <|im_start|>system⏎
    Count.<|im_end|>⏎
    <|im_start|>user⏎
    Hi<|im_end|>⏎
    <|im_start|>assistant⏎
    [Hello.<|im_end|>⏎
    ]<|im_start|>user⏎
    Add⏎
    1 and 2<|im_end|>⏎
    <|im_start|>assistant⏎
    [3<|im_end|>⏎
    ]
    ");
}

#[test]
fn alpaca_without_a_chat_template_is_its_own_prompt() {
    let files = Files::new(&[("a.json", r#"[{"instruction": "Add", "input": "1 and 2", "output": "3"}]"#)]);
    let tokenizer = tokenizer_without_template();
    let dataset = Dataset::load(&DataSpec::file(files.path("a.json")), &tokenizer).unwrap();
    insta::assert_snapshot!(masked(&dataset.examples[0], &tokenizer), @r"
    <s>Below is an instruction that describes a task, paired with an input that provides further context. Write a response that appropriately completes the request.⏎
    ⏎
    ### Instruction:⏎
    Add⏎
    ⏎
    ### Input:⏎
    1 and 2⏎
    ⏎
    ### Response:⏎
    [3</s>]
    ");
}

#[test]
fn text_gets_the_tokenizers_own_tokens_and_an_end() {
    let dataset = load(r#"{"text": "Bo tunes a bow"}"#, |_| {}).unwrap();
    let example = &dataset.examples[0];
    assert_eq!(masked(example, &tokenizer()), "<s>[Bo tunes a bow</s>]");
    assert_eq!(example.labels[0], 1, "labels are not shifted");
    assert_eq!(example.trained_tokens(), example.len() - 1);
}

#[test]
fn an_end_that_is_already_there_is_not_doubled() {
    let lines = "{\"text\": \"a bow</s>\"}\n{\"prompt\": \"a\", \"completion\": \" bow</s>\"}";
    let (text, completion) = lines.split_once('\n').unwrap();
    assert_eq!(shown(text), "<s>[a bow</s>]\n");
    assert_eq!(shown(completion), "<s>a[ bow</s>]\n");
}

#[test]
fn message_content_may_be_a_list_of_text_parts() {
    let line = r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c"}]}"#
        .replace('\n', " ");
    assert!(shown(&line).contains("user⏎\na b<|im_end|>"));
}

#[test]
fn a_conversational_completion_trains_its_completion() {
    let line = r#"{"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}], "completion": [{"role": "assistant", "content": "d"}]}"#;
    let text = shown(line);
    assert!(text.contains("[d<|im_end|>") && !text.contains("[b"), "{text}");
}

#[test]
fn json_may_be_a_list_an_object_or_lines() {
    let list = "\u{feff}[\n {\"text\": \"a, ]\\\"} b\"},\r\n {\"text\": \"c\"}\n]\n";
    let dataset = load_as("a.json", list, |_| {}).unwrap();
    assert_eq!(dataset.examples.iter().map(|e| e.source.line).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(masked(&dataset.examples[0], &tokenizer()), "<s>[a, ]\"} b</s>]");
    assert_eq!(load_as("b.json", "{\n\"text\": \"a\"\n}", |_| {}).unwrap().examples.len(), 1);
    assert_eq!(
        load_as("c.json", "{\"text\": \"a\"}\n\n{\"text\": \"b\"}\n", |_| {}).unwrap().examples[1]
            .source
            .line,
        3
    );
}

#[test]
fn a_text_file_longer_than_a_row_is_cut_into_pieces() {
    let text = "Ana tunes three strings before noon. ".repeat(20);
    let whole = load_as("a.txt", &text, |_| {}).unwrap();
    let pieces = load_as("a.txt", &text, |spec| spec.max_length = 16).unwrap();
    let joined: Vec<u32> = pieces.examples.iter().flat_map(|example| example.input_ids.clone()).collect();
    assert_eq!(joined, whole.examples[0].input_ids);
    assert_eq!((pieces.report.split, pieces.report.truncated), (1, 0));
}

#[test]
fn a_folder_is_its_files_in_the_order_of_their_names() {
    let files = Files::new(&[
        ("b.jsonl", "{\"text\": \"b\"}"),
        ("a.txt", "a"),
        ("README.md", "no data"),
        ("c.json", "[]"),
    ]);
    let dataset = Dataset::load(&DataSpec::file(files.folder()), &tokenizer()).unwrap();
    let names: Vec<_> =
        dataset.report.files.iter().map(|file| file.path.file_name().unwrap().to_owned()).collect();
    assert_eq!(names, ["a.txt", "b.jsonl", "c.json"]);
    assert_eq!(dataset.examples.len(), 2);
}

#[test]
fn overflow_is_cut_dropped_or_refused_and_counted() {
    let lines = "{\"text\": \"a\"}\n{\"text\": \"Ana tunes three strings before noon, again and again!\"}";
    let with = |on_overflow| load(lines, |spec| (spec.max_length, spec.on_overflow) = (6, on_overflow));
    let cut = with(OnOverflow::Truncate).unwrap();
    assert_eq!((cut.examples[1].len(), cut.report.truncated), (6, 1));
    let dropped = with(OnOverflow::Drop).unwrap();
    assert_eq!((dropped.examples.len(), dropped.report.dropped), (1, 1));
    let error = with(OnOverflow::Error).unwrap_err().to_string();
    assert!(error.contains("data.jsonl:2") && error.contains("data.on_overflow"), "{error}");
}

#[test]
fn what_is_noticed_is_counted_and_told() {
    let lines = [r#"{"text": "<s>a"}"#, r#"{"text": "b"}"#];
    let report = load(&lines.join("\n"), |_| {}).unwrap().report;
    assert_eq!((report.double_bos, report.examples), (1, 2));
    let chats = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
{"messages": [{"role": "user", "content": "only a question"}]}"#;
    let report = load(chats, |spec| spec.chat_template = Some("phi-3".into())).unwrap().report;
    assert_eq!((report.without_trained_token, report.examples, report.missing_end), (1, 1, 0));
    assert_eq!(report.other_end["<|end|>"], 1);
    let report = load(chats, |spec| spec.chat_template = Some("gemma".into())).unwrap().report;
    insta::assert_snapshot!(report.warnings().join("\n"), @r"
    Left out, having no token that carries loss: 1 example.
    Ending in <end_of_turn>, at which this model does not stop by itself (make it an eos_token_id in generation_config.json): 1 example.
    ");
}

#[test]
fn messages_to_answer_are_read_from_a_list_or_an_object() {
    let list = r#"[{"role": "user", "content": "a"}]"#;
    let object = format!(r#"{{"messages": {list}, "tools": [{{}}]}}"#);
    let files =
        Files::new(&[("list.json", list), ("object.json", &object), ("bad.json", "[{\"role\": \"usr\"}]")]);
    assert_eq!(Chat::read(&files.path("list.json")).unwrap().messages.len(), 1);
    assert!(Chat::read(&files.path("object.json")).unwrap().tools.is_some());
    let error = Chat::read(&files.path("bad.json")).unwrap_err().to_string();
    assert!(error.contains("bad.json:1") && error.contains("did you mean \"user\"?"), "{error}");
}

#[test]
fn weights_repeat_and_thin_out_examples_evenly_over_epochs() {
    let files = Files::new(&[
        ("a.jsonl", &"{\"text\": \"a\"}\n".repeat(10)),
        ("b.jsonl", &"{\"text\": \"b\"}\n".repeat(40)),
    ]);
    let source = |name: &str, weight| SourceSpec { weight, ..SourceSpec::new(files.path(name)) };
    let spec = DataSpec::new(vec![source("a.jsonl", 2.0), source("b.jsonl", 0.25)]);
    let dataset = Dataset::load(&spec, &tokenizer()).unwrap();
    let mut visits = vec![0; 50];
    for epoch in 0..4 {
        let order =
            data::OrderSpec { seed: 7, epoch, shuffle: true, packing: true, group: None, max_length: 64 };
        let rows = dataset.rows(&order);
        assert_eq!(rows, dataset.rows(&order));
        rows.into_iter().flatten().for_each(|i| visits[i] += 1);
    }
    assert_eq!(visits, [vec![8; 10], vec![1; 40]].concat());
}

#[test]
fn an_evaluation_part_is_split_off_by_the_seed_alone() {
    let lines: String = (0..40).map(|i| format!("{{\"text\": \"number {i}\"}}\n")).collect();
    let split = |seed| load(&lines, |_| {}).unwrap().split(0.1, seed).unwrap();
    let (train, eval) = split(1);
    assert_eq!((train.examples.len(), eval.examples.len()), (36, 4));
    assert_eq!(train.report.tokens + eval.report.tokens, load(&lines, |_| {}).unwrap().report.tokens);
    let lines = |part: &Dataset| part.examples.iter().map(|example| example.source.line).collect::<Vec<_>>();
    assert_eq!(lines(&eval), lines(&split(1).1));
    assert_ne!(lines(&eval), lines(&split(2).1));
}

#[test]
fn the_threads_do_not_change_the_result() {
    let lines: String = (0..3000).map(|i| format!("{{\"text\": \"number {i}\"}}\n")).collect();
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| load(&lines, |_| {}).unwrap())
    };
    let (one, three) = (with(1), with(3));
    assert!(
        one.examples
            .iter()
            .zip(&three.examples)
            .all(|(a, b)| a.input_ids == b.input_ids && a.labels == b.labels)
    );
}

#[test]
fn sources_are_a_path_or_a_list_of_paths_and_objects() {
    let parse = |json: &str| serde_json::from_str::<Sources>(json).map(|sources| sources.0);
    assert_eq!(parse(r#""a.jsonl""#).unwrap(), [SourceSpec::new("a.jsonl")]);
    let list = parse(r#"["a.txt", {"path": "b.json", "format": "alpaca", "weight": 2}]"#).unwrap();
    assert_eq!((list[1].format, list[1].weight), (Some(Format::Alpaca), 2.0));
    assert!(parse(r#"[{"path": "b", "format": "alpacca"}]"#).unwrap_err().to_string().contains("alpaca"));
    assert!(parse(r#"[{"path": "b", "wieght": 2}]"#).unwrap_err().to_string().contains("weight"));
}

#[test]
fn all_trains_every_token_and_tokenized_keeps_its_labels() {
    let chat = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    let dataset = load(chat, |spec| spec.train_on = TrainOn::All).unwrap();
    assert!(dataset.examples[0].labels.iter().all(|&label| label >= 0));
    let dataset = load(r#"{"input_ids": [1, 5, 6, 2], "labels": [-100, -100, 7, 2]}"#, |_| {}).unwrap();
    assert_eq!(dataset.examples[0].labels, [-100, -100, 7, 2]);
    assert_eq!(dataset.report.trained_tokens, 2);
}
