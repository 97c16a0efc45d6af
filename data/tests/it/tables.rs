//! Tables of text: csv with commas and semicolons, tsv, and what can be wrong with a row.

use data::{Format, source};
use serde_json::{Value, json};

use crate::support::{Files, error_of, load, load_as, masked, tokenizer};

/// The rows of a table, each with the line on which it begins.
fn rows(name: &str, content: &str) -> Vec<(usize, Value)> {
    let files = Files::new(&[(name, content)]);
    let records = source::records(&files.path(name)).unwrap();
    let row = |record: Result<source::RawRecord, data::DataError>| {
        let record = record.unwrap();
        (record.at.line, Value::Object(record.parse().unwrap()))
    };
    records.map(row).collect()
}

#[test]
fn a_row_is_an_object_of_strings_under_the_names_of_the_first() {
    let expected = [
        (2, json!({"prompt": "a, b", "completion": " c"})),
        (3, json!({"prompt": "say \"x\"\nand \r\n\n stop", "completion": ""})),
        (7, json!({"prompt": "01", "completion": "null"})),
    ];
    let text = "prompt,completion\n\"a, b\", c\n\"say \"\"x\"\"\nand \r\n\n stop\",\n01,null\n";
    assert_eq!(rows("a.csv", text), expected);
    assert_eq!(rows("a.csv", &format!("\u{feff}{text}")), expected, "with a byte order mark");
    assert_eq!(rows("a.csv", text.trim_end()), expected, "without a line end at the end");
}

#[test]
fn lines_are_counted_whatever_their_ends_and_blank_ones_are_passed_over() {
    for (text, lines) in [
        ("text\na\nb\n", [2, 3]),
        ("text\r\na\r\nb\r\n", [2, 3]),
        ("text\r\n\r\na\r\n\r\n\r\nb\r\n", [3, 6]),
        ("\n\ntext\na\n\nb", [4, 6]),
        ("text\n\"a\"\r\n\"b\"\n", [2, 3]),
    ] {
        let found: Vec<usize> = rows("a.csv", text).into_iter().map(|(line, _)| line).collect();
        assert_eq!(found, lines, "{text:?}");
    }
}

#[test]
fn what_separates_columns_is_seen_in_the_first_row() {
    let expected = [(2, json!({"question": "a,b", "answer": "c;d"}))];
    assert_eq!(rows("a.csv", "question;answer\na,b;\"c;d\"\n"), expected);
    assert_eq!(rows("a.csv", "question,answer\n\"a,b\",c;d\n"), expected);
    assert_eq!(rows("a.csv", "question\tanswer\na,b\tc;d\n"), expected);
    assert_eq!(rows("a.tsv", "question\tanswer\na,b\tc;d\n"), expected);
    assert_eq!(rows("a.csv", "\"a,b;c;d\",x\n1,2\n"), [(2, json!({"a,b;c;d": "1", "x": "2"}))]);
    assert_eq!(rows("a.csv", "text\na,b\n".replace(',', ";").as_str()), [(2, json!({"text": "a;b"}))]);
    // pandas' column of row numbers has no name.
    assert_eq!(rows("a.csv", ",text\n0,a\n"), [(2, json!({"text": "a"}))]);
}

#[test]
fn a_table_is_trained_on_as_the_same_records_of_json_are() {
    let same = |table: &str, records: &[Value]| {
        let lines: String = records.iter().map(|record| format!("{record}\n")).collect();
        let (table, lines) = (load_as("a.csv", table, |_| {}).unwrap(), load(&lines, |_| {}).unwrap());
        let content = |dataset: &data::Dataset| {
            let ids = |e: &data::Example| (e.input_ids.clone(), e.labels.clone());
            dataset.examples.iter().map(ids).collect::<Vec<_>>()
        };
        assert_eq!(content(&table), content(&lines));
        assert_eq!(table.report.files[0].format, lines.report.files[0].format);
    };
    same(
        "instruction,input,output\nAdd,1 and 2,3\nHi,,Hello\n",
        &[
            json!({"instruction": "Add", "input": "1 and 2", "output": "3"}),
            json!({"instruction": "Hi", "input": "", "output": "Hello"}),
        ],
    );
    same("prompt,completion\na, b\n", &[json!({"prompt": "a", "completion": " b"})]);
    same("text\na\n", &[json!({"text": "a"})]);
    // A list in a cell is JSON.
    let messages = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
    let cell = messages.to_string().replace('"', "\"\"");
    same(&format!("id,messages\n1,\"{cell}\"\n"), &[json!({"id": "1", "messages": messages})]);
    // An empty cell is no mark.
    same(
        "prompt,completion,weight\na,b,\nc,d,0\n",
        &[json!({"prompt": "a", "completion": "b"}), json!({"prompt": "c", "completion": "d", "weight": 0})],
    );
}

#[test]
fn question_and_answer_are_an_instruction() {
    let dataset = load_as("a.csv", "question,answer\nWhy?,So.\n", |_| {}).unwrap();
    assert_eq!(dataset.report.files[0].format, Format::Alpaca);
    assert!(masked(&dataset.examples[0], &tokenizer()).contains("assistant⏎\n[So.<|im_end|>"));
}

#[test]
fn what_is_wrong_with_a_row_is_told_with_its_line() {
    let columns = "the first row names 2 columns (prompt, completion); a field that contains separators, quotation marks or line \
                   breaks must stand in quotation marks";
    for (content, message) in [
        ("prompt,completion\na,b\nc\n", format!("a.csv:3: the row has 1 field, {columns}")),
        ("prompt,completion\r\na,b\r\nc, d, e\r\n", format!("a.csv:3: the row has 3 fields, {columns}")),
        (
            "prompt,completion\na,b\nc,\"d\ne,f\ng,h\n",
            "a.csv:3: the quotation mark that opens a field here is never closed".into(),
        ),
        (
            "\"prompt,completion\na,b\n",
            "a.csv:1: the quotation mark that opens a field here is never closed".into(),
        ),
        (
            "text,text\na,b\n",
            "a.csv:1: two columns are named \"text\"; the first row must name each column once".into(),
        ),
        ("prompt,completion\n", "nothing would be trained: there is no example in a.csv".into()),
        ("", "nothing would be trained: there is no example in a.csv".into()),
    ] {
        assert_eq!(error_of("a.csv", content, |_| {}), message, "{content:?}");
    }
    let error = error_of("a.csv", "mr,ref\na,b\n", |_| {});
    assert!(
        error.starts_with("a.csv:2: no known format has only the keys [mr, ref]. Known are messages"),
        "{error}"
    );
    let python = "messages\n\"[{'role': 'user', 'content': 'a'}]\"\n";
    assert_eq!(
        error_of("a.csv", python, |_| {}),
        "a.csv:2: \"messages\" is a list as Python prints it, not JSON; write it by json.dumps, or save the table as .parquet"
    );
}

#[test]
fn a_cell_that_is_no_utf8_is_told_with_its_column() {
    let files = Files::new(&[]);
    std::fs::write(files.path("a.csv"), b"prompt,completion\na,b\nc,caf\xe9\n").unwrap();
    let records = source::records(&files.path("a.csv")).unwrap();
    let error = records.flat_map(Result::err).next().unwrap().to_string();
    assert!(
        error.ends_with("a.csv:3: not UTF-8 in the column \"completion\"; save the file as UTF-8"),
        "{error}"
    );
}
