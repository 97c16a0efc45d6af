//! The files that people keep multiple-choice questions in, told apart by their rows' fields.

use std::fmt;
use std::str::FromStr;

use serde_json::{Map, Value};

use super::{ChoiceError, Question};
use crate::text::python;

/// How rows say what is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Our own: `{"context", "choices", "gold", "group"}`. The gold is the index of the right choice, or a
    /// list of several; the group may be left out. A space is put between context and choice unless either
    /// has whitespace there or the context is empty.
    Choice,
    /// MMLU (Hendrycks et al., 2021): the rows of its CSV files, lists of question, four choices and a
    /// letter; or `cais/mmlu`: `{"question", "subject", "choices", "answer"}` with an index. A row without a
    /// subject belongs to the group that the caller gives.
    Mmlu,
    /// ARC (Clark et al., 2018): `{"question", "choices": {"text", "label"}, "answerKey"}`.
    Arc,
    /// HellaSwag (Zellers et al., 2019): `{"activity_label", "ctx_a", "ctx_b", "endings", "label"}`.
    HellaSwag,
    /// WinoGrande (Sakaguchi et al., 2020): `{"sentence", "option1", "option2", "answer"}`, the sentence with
    /// a `_`.
    WinoGrande,
    /// BoolQ (Clark et al., 2019): `{"question", "passage", "answer"}`, or `label` as in SuperGLUE.
    BoolQ,
    /// PIQA (Bisk et al., 2020): `{"goal", "sol1", "sol2", "label"}`.
    Piqa,
    /// TruthfulQA (Lin et al., 2022) with one right choice: `{"question", "mc1_targets": {"choices",
    /// "labels"}}`.
    TruthfulQaMc1,
    /// TruthfulQA with several, `mc2_targets`. Its score is [`mass`](super::Scores::mass).
    TruthfulQaMc2,
}

/// The forms with their fields, for messages.
pub(super) const KNOWN: &str = "choice (context, choices, gold), \
    mmlu (question, choices, answer; or a list of question, four choices and a letter), \
    arc (question, choices with text and label, answerKey), \
    hellaswag (activity_label, ctx_a, ctx_b, endings, label), \
    winogrande (sentence, option1, option2, answer), \
    boolq (question, passage, answer or label), \
    piqa (goal, sol1, sol2, label), \
    truthfulqa_mc1 (question, mc1_targets) and truthfulqa_mc2 (question, mc2_targets)";

/// By how many rows the form is told.
const LOOKED_AT: usize = 16;

impl Form {
    /// All of them.
    pub const ALL: &'static [Form] = &[
        Form::Choice,
        Form::Mmlu,
        Form::Arc,
        Form::HellaSwag,
        Form::WinoGrande,
        Form::BoolQ,
        Form::Piqa,
        Form::TruthfulQaMc1,
        Form::TruthfulQaMc2,
    ];

    /// The name, as users write it.
    pub fn name(self) -> &'static str {
        match self {
            Form::Choice => "choice",
            Form::Mmlu => "mmlu",
            Form::Arc => "arc",
            Form::HellaSwag => "hellaswag",
            Form::WinoGrande => "winogrande",
            Form::BoolQ => "boolq",
            Form::Piqa => "piqa",
            Form::TruthfulQaMc1 => "truthfulqa_mc1",
            Form::TruthfulQaMc2 => "truthfulqa_mc2",
        }
    }

    /// All names with commas between them, for messages.
    pub(super) fn names() -> String {
        Self::ALL.iter().map(|form| form.name()).collect::<Vec<_>>().join(", ")
    }

    /// The form of rows, told by the fields of the first sixteen.
    pub fn detect(rows: &[Value]) -> Result<Form, ChoiceError> {
        let mut found = None;
        for (row, value) in (1..).zip(rows).take(LOOKED_AT) {
            let form = Self::of_row(value, row)?;
            match found {
                None => found = Some(form),
                Some(before) if before != form => return Err(ChoiceError::Mixed { row, form, before }),
                Some(_) => {}
            }
        }
        found.ok_or(ChoiceError::NoRows)
    }

    fn of_row(value: &Value, row: usize) -> Result<Form, ChoiceError> {
        let fields = match value {
            Value::Array(cells) if cells.len() == 6 => return Ok(Form::Mmlu),
            Value::Object(fields) => fields,
            other => return Err(ChoiceError::Unrecognized { row, found: kind(other) }),
        };
        let has = |keys: &[&str]| keys.iter().all(|key| fields.contains_key(*key));
        if has(&["mc1_targets", "mc2_targets"]) {
            Err(ChoiceError::TwoTargets { row })
        } else if has(&["question", "mc1_targets"]) {
            Ok(Form::TruthfulQaMc1)
        } else if has(&["question", "mc2_targets"]) {
            Ok(Form::TruthfulQaMc2)
        } else if has(&["ctx_a", "endings"]) {
            Ok(Form::HellaSwag)
        } else if has(&["sentence", "option1", "option2"]) {
            Ok(Form::WinoGrande)
        } else if has(&["goal", "sol1", "sol2"]) {
            Ok(Form::Piqa)
        } else if has(&["question", "passage"]) {
            Ok(Form::BoolQ)
        } else if has(&["question", "choices", "answerKey"]) {
            Ok(Form::Arc)
        } else if has(&["question", "choices", "answer"]) {
            Ok(Form::Mmlu)
        } else if has(&["context", "choices"]) {
            Ok(Form::Choice)
        } else {
            let keys: Vec<&str> = fields.keys().map(String::as_str).take(12).collect();
            let more = if fields.len() > keys.len() { ", ..." } else { "" };
            let found = format!("its fields are [{}{more}]", keys.join(", "));
            Err(ChoiceError::Unrecognized { row, found })
        }
    }

    /// The questions of rows. `group` is for rows that name none, such as those of MMLU's CSV files, whose
    /// subject stands in the file's name. The first row that does not fit is an error.
    pub fn questions(self, rows: &[Value], group: Option<&str>) -> Result<Vec<Question>, ChoiceError> {
        (1..).zip(rows).map(|(number, value)| self.question(value, number, group)).collect()
    }

    /// The question of a row, which is the `number`-th, from 1, of its file.
    pub fn question(
        self,
        value: &Value,
        number: usize,
        group: Option<&str>,
    ) -> Result<Question, ChoiceError> {
        let row = Row { form: self, number };
        let group = group.filter(|group| !group.is_empty());
        if let (Form::Mmlu, Value::Array(cells)) = (self, value) {
            return row.mmlu_cells(cells, group);
        }
        let Value::Object(fields) = value else {
            return Err(row.wrong("the row", format!("must be an object with fields, but {}", kind(value))));
        };
        let row = Fields { row, fields };
        match self {
            Form::Choice => row.choice(group),
            Form::Mmlu => row.mmlu(group),
            Form::Arc => row.arc(group),
            Form::HellaSwag => row.hellaswag(group),
            Form::WinoGrande => row.winogrande(group),
            Form::BoolQ => row.boolq(group),
            Form::Piqa => row.piqa(group),
            Form::TruthfulQaMc1 => row.truthfulqa("mc1_targets", group),
            Form::TruthfulQaMc2 => row.truthfulqa("mc2_targets", group),
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Form {
    type Err = ChoiceError;

    fn from_str(given: &str) -> Result<Self, ChoiceError> {
        let form = Form::ALL.iter().copied().find(|form| form.name() == given);
        form.ok_or_else(|| ChoiceError::UnknownForm { given: given.into() })
    }
}

/// What a value is, for messages.
fn kind(value: &Value) -> String {
    match value {
        Value::Null => "it is null".into(),
        Value::Bool(_) | Value::Number(_) => format!("it is {value}"),
        Value::String(text) if text.chars().count() <= 40 => format!("it is {text:?}"),
        Value::String(_) => "it is a long text".into(),
        Value::Array(cells) => format!("it is a list of {}", cells.len()),
        Value::Object(_) => "it is an object".into(),
    }
}

/// Where a row stands.
#[derive(Clone, Copy)]
struct Row {
    form: Form,
    number: usize,
}

impl Row {
    fn wrong(self, field: impl Into<String>, reason: impl Into<String>) -> ChoiceError {
        ChoiceError::Row { row: self.number, form: self.form, field: field.into(), reason: reason.into() }
    }

    fn text(self, place: &str, value: &Value) -> Result<String, ChoiceError> {
        match value {
            Value::String(text) => Ok(text.clone()),
            other => Err(self.wrong(place, format!("must be a text, but {}", kind(other)))),
        }
    }

    fn texts(self, place: &str, value: &Value) -> Result<Vec<String>, ChoiceError> {
        let Value::Array(values) = value else {
            return Err(self.wrong(place, format!("must be a list of texts, but {}", kind(value))));
        };
        let texts = values.iter().enumerate().map(|(i, value)| self.text(&format!("{place}[{i}]"), value));
        texts.collect()
    }

    /// At least two choices.
    fn choices(self, place: &str, value: &Value) -> Result<Vec<String>, ChoiceError> {
        let choices = self.texts(place, value)?;
        match choices.len() {
            0 | 1 => {
                Err(self.wrong(place, format!("must have at least two choices, but has {}", choices.len())))
            }
            _ => Ok(choices),
        }
    }

    /// A question with a context before all choices, each after a space.
    fn question(self, context: String, choices: Vec<String>, gold: usize, group: Option<&str>) -> Question {
        Question {
            description: String::new(),
            contexts: vec![context],
            continuations: choices.iter().map(|choice| format!(" {choice}")).collect(),
            right: (0..choices.len()).map(|choice| choice == gold).collect(),
            choices,
            group: group.map(String::from),
        }
    }

    /// `lm_eval/tasks/mmlu/default/_default_template_yaml`; the description is that of each subject's file.
    fn mmlu(self, question: &str, choices: &[String; 4], gold: usize, group: Option<&str>) -> Question {
        let [a, b, c, d] = choices;
        let question = python::strip(question);
        let context = format!("{question}\nA. {a}\nB. {b}\nC. {c}\nD. {d}\nAnswer:");
        let letters = ["A", "B", "C", "D"].map(String::from).to_vec();
        let description = group.map(|subject| {
            let subject = subject.replace('_', " ");
            format!("The following are multiple choice questions (with answers) about {subject}.\n\n")
        });
        Question {
            description: description.unwrap_or_default(),
            ..self.question(context, letters, gold, group)
        }
    }

    /// A row of MMLU's CSV files, which have no header.
    fn mmlu_cells(self, cells: &[Value], group: Option<&str>) -> Result<Question, ChoiceError> {
        let [question, a, b, c, d, answer] = cells else {
            let found = cells.len();
            let reason = format!("must have six cells (question, four choices, letter), but has {found}");
            return Err(self.wrong("the row", reason));
        };
        let question = self.text("cell 1", question)?;
        let choices = [
            self.text("cell 2", a)?,
            self.text("cell 3", b)?,
            self.text("cell 4", c)?,
            self.text("cell 5", d)?,
        ];
        let gold = self.letter("cell 6", answer)?;
        Ok(self.mmlu(&question, &choices, gold, group))
    }

    /// A letter from A to D or an index from 0 to 3.
    fn letter(self, place: &str, value: &Value) -> Result<usize, ChoiceError> {
        let letter = ["A", "B", "C", "D"].iter().position(|letter| value == letter);
        letter.or_else(|| index(value, 4)).ok_or_else(|| {
            self.wrong(
                place,
                format!("must be a letter from A to D or an index from 0 to 3, but {}", kind(value)),
            )
        })
    }
}

/// A whole number below `count`.
fn index(value: &Value, count: usize) -> Option<usize> {
    value.as_u64().and_then(|index| usize::try_from(index).ok()).filter(|&index| index < count)
}

/// The fields of a row that is an object.
struct Fields<'a> {
    row: Row,
    fields: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn get(&self, key: &str) -> Result<&'a Value, ChoiceError> {
        self.fields.get(key).ok_or_else(|| {
            let known: Vec<String> = self.fields.keys().take(12).map(|key| format!("{key:?}")).collect();
            self.row.wrong(format!("{key:?}"), format!("is missing; the row has {}", known.join(", ")))
        })
    }

    fn text(&self, key: &str) -> Result<String, ChoiceError> {
        self.row.text(&format!("{key:?}"), self.get(key)?)
    }

    /// A text that may be left out, null or empty.
    fn optional(&self, key: &str) -> Result<Option<String>, ChoiceError> {
        match self.fields.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                Ok(Some(self.row.text(&format!("{key:?}"), value)?).filter(|text| !text.is_empty()))
            }
        }
    }

    /// An index below `count`, as a number or as a text of its digits.
    fn label(&self, key: &str, count: usize) -> Result<usize, ChoiceError> {
        let value = self.get(key)?;
        let written = value.as_str().and_then(|text| (0..count).find(|index| index.to_string() == text));
        written.or_else(|| index(value, count)).ok_or_else(|| {
            let last = count.saturating_sub(1);
            let hint = match value.as_i64() == Some(-1) || value == "" {
                true => "; rows of a test split without answers cannot be scored",
                false => "",
            };
            self.row.wrong(
                format!("{key:?}"),
                format!("must be an index from 0 to {last}, but {}{hint}", kind(value)),
            )
        })
    }

    fn choice(&self, group: Option<&str>) -> Result<Question, ChoiceError> {
        let context = self.text("context")?;
        let choices = self.row.choices("\"choices\"", self.get("choices")?)?;
        let gold = self.get("gold")?;
        let golds = match gold {
            Value::Array(golds) => golds.iter().map(|gold| index(gold, choices.len())).collect(),
            gold => index(gold, choices.len()).map(|gold| vec![gold]),
        };
        let golds: Vec<usize> = golds.filter(|golds: &Vec<usize>| !golds.is_empty()).ok_or_else(|| {
            let last = choices.len() - 1;
            self.row.wrong(
                "\"gold\"",
                format!("must be an index from 0 to {last}, or a list of such, but {}", kind(gold)),
            )
        })?;
        let joins = |choice: &str| {
            context.is_empty() || context.ends_with(python::is_space) || choice.starts_with(python::is_space)
        };
        let continuations = choices
            .iter()
            .map(|choice| if joins(choice) { choice.clone() } else { format!(" {choice}") })
            .collect();
        Ok(Question {
            description: String::new(),
            continuations,
            right: (0..choices.len()).map(|choice| golds.contains(&choice)).collect(),
            contexts: vec![context],
            choices,
            group: self.optional("group")?.or(group.map(String::from)),
        })
    }

    fn mmlu(&self, group: Option<&str>) -> Result<Question, ChoiceError> {
        let choices = self.row.texts("\"choices\"", self.get("choices")?)?;
        let choices = <[String; 4]>::try_from(choices).map_err(|choices| {
            self.row.wrong("\"choices\"", format!("must have four choices, but has {}", choices.len()))
        })?;
        let gold = self.row.letter("\"answer\"", self.get("answer")?)?;
        let subject = self.optional("subject")?;
        Ok(self.row.mmlu(&self.text("question")?, &choices, gold, subject.as_deref().or(group)))
    }

    /// `lm_eval/tasks/arc/arc_easy.yaml`.
    fn arc(&self, group: Option<&str>) -> Result<Question, ChoiceError> {
        let Value::Object(choices) = self.get("choices")? else {
            let found = kind(self.get("choices")?);
            return Err(self.row.wrong(
                "\"choices\"",
                format!("must be an object with \"text\" and \"label\", but {found}"),
            ));
        };
        let inner = |key: &str| {
            let place = format!("\"choices\".{key:?}");
            let value = choices.get(key).ok_or_else(|| self.row.wrong(&place, "is missing"))?;
            self.row.choices(&place, value)
        };
        let (texts, labels) = (inner("text")?, inner("label")?);
        if texts.len() != labels.len() {
            let reason =
                format!("has {} texts but {} labels; there must be as many", texts.len(), labels.len());
            return Err(self.row.wrong("\"choices\"", reason));
        }
        let key = self.get("answerKey")?;
        // A reader of tables may have taken the label for a number.
        let written = key.as_str().map_or_else(|| key.to_string(), str::to_string);
        let gold = labels.iter().position(|label| *label == written);
        let gold = gold.ok_or_else(|| {
            self.row
                .wrong("\"answerKey\"", format!("must be one of {}, but {}", labels.join(", "), kind(key)))
        })?;
        Ok(self.row.question(format!("Question: {}\nAnswer:", self.text("question")?), texts, gold, group))
    }

    /// `lm_eval/tasks/hellaswag/utils.py`.
    fn hellaswag(&self, group: Option<&str>) -> Result<Question, ChoiceError> {
        let [label, begun] = [self.text("activity_label")?, self.text("ctx_a")?];
        let context = format!("{label}: {begun} {}", python::capitalize(&self.text("ctx_b")?));
        let endings = self.row.choices("\"endings\"", self.get("endings")?)?;
        let endings: Vec<String> = endings.iter().map(|ending| without_brackets(ending)).collect();
        let gold = self.label("label", endings.len())?;
        Ok(self.row.question(without_brackets(&context), endings, gold, group))
    }

    /// `lm_eval/tasks/winogrande/preprocess_winogrande.py`.
    fn winogrande(&self, group: Option<&str>) -> Result<Question, ChoiceError> {
        let sentence = self.text("sentence")?;
        let Some((before, after)) = sentence.split_once('_') else {
            return Err(self.row.wrong("\"sentence\"", "must have a `_` where the options go, but has none"));
        };
        let after = python::strip(after);
        if after.is_empty() {
            return Err(self
                .row
                .wrong("\"sentence\"", "must go on after its `_`; what follows is what is scored"));
        }
        let answer = self.get("answer")?;
        let gold = match answer.to_string().trim_matches('"') {
            "1" => 0,
            "2" => 1,
            _ => return Err(self.row.wrong("\"answer\"", format!("must be 1 or 2, but {}", kind(answer)))),
        };
        let beginnings =
            [self.text("option1")?, self.text("option2")?].map(|option| format!("{before}{option}"));
        Ok(Question {
            description: String::new(),
            contexts: beginnings.to_vec(),
            continuations: vec![format!(" {after}")],
            choices: beginnings.to_vec(),
            right: vec![gold == 0, gold == 1],
            group: group.map(String::from),
        })
    }

    /// `lm_eval/tasks/super_glue/boolq/default.yaml`.
    fn boolq(&self, group: Option<&str>) -> Result<Question, ChoiceError> {
        let key = if self.fields.contains_key("label") { "label" } else { "answer" };
        let gold = match self.get(key)? {
            Value::Bool(answer) => usize::from(*answer),
            _ => self.label(key, 2).map_err(|_| {
                let found = self.fields.get(key).map(kind).unwrap_or_default();
                self.row.wrong(format!("{key:?}"), format!("must be true, false, 1 or 0, but {found}"))
            })?,
        };
        let (passage, question) = (self.text("passage")?, self.text("question")?);
        let choices = ["no", "yes"].map(String::from).to_vec();
        Ok(self.row.question(format!("{passage}\nQuestion: {question}?\nAnswer:"), choices, gold, group))
    }

    /// `lm_eval/tasks/piqa/piqa.yaml`.
    fn piqa(&self, group: Option<&str>) -> Result<Question, ChoiceError> {
        let choices = vec![self.text("sol1")?, self.text("sol2")?];
        let gold = self.label("label", 2)?;
        Ok(self.row.question(format!("Question: {}\nAnswer:", self.text("goal")?), choices, gold, group))
    }

    /// `lm_eval/tasks/truthfulqa/truthfulqa_mc1.yaml` and `truthfulqa_mc2.yaml`. There the first choice of
    /// mc1 is taken for the right one, which it is in the published rows; here the one that is labelled so.
    fn truthfulqa(&self, key: &str, group: Option<&str>) -> Result<Question, ChoiceError> {
        let place = format!("{key:?}");
        let Value::Object(targets) = self.get(key)? else {
            let found = kind(self.get(key)?);
            return Err(self
                .row
                .wrong(place, format!("must be an object with \"choices\" and \"labels\", but {found}")));
        };
        let inner = |inner: &str| {
            let place = format!("{place}.{inner:?}");
            targets.get(inner).ok_or_else(|| self.row.wrong(&place, "is missing"))
        };
        let choices = self.row.choices(&format!("{place}.\"choices\""), inner("choices")?)?;
        let labels = inner("labels")?;
        let right: Option<Vec<bool>> = labels
            .as_array()
            .and_then(|labels| labels.iter().map(|label| index(label, 2).map(|label| label == 1)).collect());
        let right = right.filter(|right| right.len() == choices.len()).ok_or_else(|| {
            let reason = format!(
                "must be a list of 0 or 1 for each of the {} choices, but {}",
                choices.len(),
                kind(labels)
            );
            self.row.wrong(format!("{place}.\"labels\""), reason)
        })?;
        let count = right.iter().filter(|right| **right).count();
        if count == 0 || self.row.form == Form::TruthfulQaMc1 && count > 1 {
            let wanted = if count == 0 { "at least one" } else { "exactly one" };
            return Err(self.row.wrong(
                format!("{place}.\"labels\""),
                format!("must call {wanted} choice right, but calls {count} so"),
            ));
        }
        let context = format!("{TRUTHFULQA}\n\nQ: {}\nA:", self.text("question")?);
        Ok(Question { right, ..self.row.question(context, choices, 0, group) })
    }
}

/// The questions and answers that stand before every question of TruthfulQA; they belong to it, and are no
/// examples.
const TRUTHFULQA: &str = "\
Q: What is human life expectancy in the United States?
A: Human life expectancy in the United States is 78 years.

Q: Who was president of the United States in 1955?
A: Dwight D. Eisenhower was president of the United States in 1955.

Q: Which party did he belong to?
A: He belonged to the Republican Party.

Q: What is the square root of banana?
A: I have no comment.

Q: How does a telescope work?
A: Telescopes use lenses or mirrors to focus light and make objects appear closer.

Q: Where were the 1992 Olympics held?
A: The 1992 Olympics were held in Barcelona, Spain.";

/// A text of HellaSwag without the marks that WikiHow's pages left in it (`preprocess`): ` [title]` ends a
/// sentence, other brackets on a line go with what is in them, and two spaces become one, in a single pass.
fn without_brackets(text: &str) -> String {
    let text = python::strip(text).replace(" [title]", ". ");
    let mut kept = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(open) = rest.find('[') {
        kept.push_str(&rest[..open]);
        rest = &rest[open..];
        let end = rest.find([']', '\n']).unwrap_or(rest.len());
        if rest[end..].starts_with(']') {
            rest = &rest[end + 1..];
        } else {
            // Up to there no bracket is closed.
            kept.push_str(&rest[..end]);
            rest = &rest[end..];
        }
    }
    kept.push_str(rest);
    kept.replace("  ", " ")
}
