//! What Slurm's commands say, read so that other versions are understood and nonsense is refused.
//!
//! Slurm 22.05 writes numbers and texts where later versions write `{"set", "infinite", "number"}` and lists.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Millis;
use crate::amounts::{Amounts, Bounds, WHOLE};

/// Further away than this, a time of start is what Slurm makes of a job without an end.
const FAR: Millis = 300 * 24 * 3_600_000;
/// Tasks of an array that are told apart.
const MAX_TASKS: usize = 100_000;

/// Where a job of Slurm stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Somebody holds it back.
    Held,
    /// It waits.
    Waiting,
    /// It computes.
    Running,
    /// It has been told to make room, or is on its way out.
    Stopping,
    /// Its work is done.
    Done,
    /// It failed.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
    /// Slurm has a word for it that we do not know.
    Unknown,
}

impl State {
    /// Whether it has ended.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, State::Done | State::Failed | State::Cancelled)
    }
}

/// A job as Slurm knows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Job {
    /// Its number as people write it: `12`, in an array `12_3`, or `12` for those of an array that wait.
    pub id: String,
    /// Slurm's own number.
    pub number: u64,
    /// Its name.
    pub name: String,
    /// Whose it is.
    pub user: String,
    /// Its project, as Slurm calls it: the account.
    pub project: String,
    /// Its quality of service: the project's own, or `over` on borrowed room.
    pub qos: String,
    /// Where it stands.
    pub state: State,
    /// Slurm's word for that.
    pub slurm_state: String,
    /// Slurm's word for why it waits, `None` if it does not.
    pub reason: String,
    /// What it asks for, all members together.
    pub requested: Amounts,
    /// Where it runs or ran.
    pub nodes: String,
    /// When it was submitted, in milliseconds since the epoch.
    pub submitted: Option<Millis>,
    /// When its last start was.
    pub started: Option<Millis>,
    /// When it is expected to start, if Slurm knows.
    pub expected: Option<Millis>,
    /// When it ended.
    pub ended: Option<Millis>,
    /// How often it was put back in the queue.
    pub restarts: u64,
    /// With what it ended.
    pub exit: Option<u64>,
    /// The folder that it runs in.
    pub folder: PathBuf,
    /// Where it writes what it says.
    pub log: PathBuf,
    /// Whether we submitted it.
    #[serde(skip)]
    pub(super) is_ours: bool,
    /// Of an array, those tasks that this stands for.
    #[serde(skip)]
    waiting: Vec<u64>,
    #[serde(skip)]
    array: Option<u64>,
}

impl Job {
    /// The number of its array.
    pub(super) fn array(&self) -> Option<String> {
        self.array.map(|array| array.to_string())
    }

    /// The numbers of all that it stands for.
    pub(super) fn tasks(&self) -> Vec<String> {
        match self.array {
            Some(array) if !self.waiting.is_empty() => {
                self.waiting.iter().map(|task| format!("{array}_{task}")).collect()
            }
            _ => vec![self.id.clone()],
        }
    }
}

/// The jobs of `squeue --json`.
pub(super) fn queue(text: &str, now: Millis) -> Result<Vec<Job>, String> {
    jobs_of(text)?
        .iter()
        .enumerate()
        .map(|(n, value)| in_queue(&Fields { value, at: format!("jobs[{n}]") }, now))
        .collect()
}

/// The jobs of `sacct --json`.
pub(super) fn ended(text: &str) -> Result<Vec<Job>, String> {
    jobs_of(text)?
        .iter()
        .enumerate()
        .map(|(n, value)| in_accounts(&Fields { value, at: format!("jobs[{n}]") }))
        .collect()
}

fn jobs_of(text: &str) -> Result<Vec<Value>, String> {
    let mut answer: Value = serde_json::from_str(text).map_err(|error| format!("it is no JSON: {error}"))?;
    if let Some(error) = answer["errors"].as_array().and_then(|errors| errors.first()) {
        let said = error.get("error").or(error.get("description")).and_then(Value::as_str);
        return match said.unwrap_or("without a word") {
            // That is how the accounting says that it knows none.
            said if said.contains("Nothing found") => Ok(Vec::new()),
            said => Err(format!("it reports an error: {}", super::one_line(said))),
        };
    }
    match answer.get_mut("jobs").map(Value::take) {
        Some(Value::Array(jobs)) => Ok(jobs),
        _ => Err("there is no list `jobs` in it".into()),
    }
}

fn in_queue(fields: &Fields<'_>, now: Millis) -> Result<Job, String> {
    let number = fields.number("job_id")?.ok_or_else(|| fields.lacks("job_id"))?;
    let array = fields.number("array_job_id")?.filter(|&array| array > 0);
    let task = fields.number("array_task_id")?.filter(|_| array.is_some());
    let waiting = match task {
        None => tasks(fields.text("array_task_string")?.as_str()),
        Some(_) => Vec::new(),
    };
    let slurm_state = fields.text("job_state")?;
    let reason = fields.text("state_reason")?;
    let preempted = fields.number("preempt_time")?.is_some_and(|time| time > 0);
    let state = match state(&slurm_state) {
        State::Waiting if reason.starts_with("JobHeld") => State::Held,
        State::Running if preempted => State::Stopping,
        state => state,
    };
    let time =
        |key: &str| Ok::<_, String>(fields.number(key)?.filter(|&t| t > 0).map(|t| t.saturating_mul(1000)));
    let start = time("start_time")?;
    let waits = matches!(state, State::Waiting | State::Held);
    let folder = PathBuf::from(fields.text("current_working_directory")?);
    let pattern = fields.text("standard_output")?;
    let id = match (array, task) {
        (Some(array), Some(task)) => format!("{array}_{task}"),
        (Some(array), None) => array.to_string(),
        (None, _) => number.to_string(),
    };
    Ok(Job {
        id,
        number,
        name: fields.text("name")?,
        user: fields.text("user_name")?,
        project: fields.text("account")?,
        qos: fields.text("qos")?,
        state,
        slurm_state,
        reason,
        requested: amounts(&fields.text("tres_req_str")?)
            .map_err(|error| fields.wrong("tres_req_str", &error))?,
        nodes: fields.text("nodes")?,
        submitted: time("submit_time")?,
        started: start.filter(|_| !waits),
        expected: start.filter(|&at| waits && at > now && at - now < FAR),
        ended: time("end_time")?.filter(|_| state.is_over()),
        restarts: fields.number("restart_cnt")?.unwrap_or(0),
        exit: exit_of(fields, state)?,
        log: log(&pattern, &folder, number, array, task),
        folder,
        is_ours: fields.text("comment")?.starts_with("luthier:"),
        waiting,
        array,
    })
}

fn exit_of(fields: &Fields<'_>, state: State) -> Result<Option<u64>, String> {
    if !state.is_over() {
        return Ok(None);
    }
    // 22.05 has what `wait` gives; later ones `{"return_code": {"number"}}`.
    match fields.value.get("exit_code").and_then(|code| code.get("return_code")) {
        Some(code) => Ok(number(code)),
        None => Ok(fields.number("exit_code")?.map(|status| status >> 8 & 0xff)),
    }
}

fn in_accounts(fields: &Fields<'_>) -> Result<Job, String> {
    let number_ = fields.number("job_id")?.ok_or_else(|| fields.lacks("job_id"))?;
    let within = |key: &str| Fields { value: &fields.value[key], at: format!("{}.{key}", fields.at) };
    let (times, states, arrays) = (within("time"), within("state"), within("array"));
    let array = arrays.number("job_id")?.filter(|&array| array > 0);
    let task = arrays.number("task_id")?.or(arrays.number("task")?).filter(|_| array.is_some());
    let slurm_state = states.text("current")?;
    let state = state(&slurm_state);
    let time =
        |key: &str| Ok::<_, String>(times.number(key)?.filter(|&t| t > 0).map(|t| t.saturating_mul(1000)));
    let folder = PathBuf::from(fields.text("working_directory")?);
    let pattern = if array.is_some() { "slurm-%A_%a.out" } else { "slurm-%j.out" };
    let requested = requested_of(&fields.value["tres"]["requested"]);
    let id = match (array, task) {
        (Some(array), Some(task)) => format!("{array}_{task}"),
        _ => number_.to_string(),
    };
    Ok(Job {
        id,
        number: number_,
        name: fields.text("name")?,
        user: fields.text("user")?,
        project: fields.text("account")?,
        qos: fields.text("qos")?,
        state,
        slurm_state,
        reason: states.text("reason")?,
        requested,
        nodes: fields.text("nodes")?,
        submitted: time("submission")?,
        started: time("start")?,
        expected: None,
        ended: time("end")?,
        restarts: fields.number("restart_cnt")?.unwrap_or(0),
        // 22.05 says 0 of whatever failed.
        exit: fields.value["exit_code"]
            .get("return_code")
            .and_then(number)
            .filter(|&code| code > 0 || state == State::Done),
        log: log(pattern, &folder, number_, array, task),
        folder,
        is_ours: true,
        waiting: Vec::new(),
        array,
    })
}

/// The accounting's list of `{"type", "name", "count"}`; memory is in MiB there.
fn requested_of(list: &Value) -> Amounts {
    let mut sum = Amounts::NONE;
    for entry in list.as_array().into_iter().flatten() {
        let count = number(&entry["count"]).unwrap_or(0);
        match (entry["type"].as_str(), entry["name"].as_str()) {
            (Some("cpu"), _) => sum.cpus = count,
            (Some("mem"), _) => sum.memory = count.saturating_mul(1 << 20),
            (Some("gres"), Some("gpu")) => sum.devices = count.saturating_mul(WHOLE),
            _ => {}
        }
    }
    sum
}

/// An object of Slurm's, and where it stands in the answer.
struct Fields<'a> {
    value: &'a Value,
    at: String,
}

impl Fields<'_> {
    /// Nothing if it is missing, null, unset or infinite.
    fn number(&self, key: &str) -> Result<Option<u64>, String> {
        match self.value.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value @ Value::Number(_)) => match value.as_u64() {
                Some(n) => Ok(Some(n)),
                None => Err(self.wrong(key, &format!("{value} is no count"))),
            },
            Some(value @ Value::Object(_)) => Ok(number(value)),
            Some(other) => Err(self.wrong(key, &format!("{} is no number", short(other)))),
        }
    }

    /// Empty if it is missing or null; the first where it is a list.
    fn text(&self, key: &str) -> Result<String, String> {
        match self.value.get(key) {
            None | Some(Value::Null) => Ok(String::new()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(Value::Array(list)) => {
                Ok(list.first().and_then(Value::as_str).unwrap_or_default().to_owned())
            }
            Some(other) => Err(self.wrong(key, &format!("{} is no text", short(other)))),
        }
    }

    fn wrong(&self, key: &str, message: &str) -> String {
        format!("{}.{key}: {message}", self.at)
    }

    fn lacks(&self, key: &str) -> String {
        format!("{}: there is no `{key}`", self.at)
    }
}

fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Number(n) => n.as_u64(),
        Value::Object(fields) => {
            let is = |key: &str| fields.get(key).and_then(Value::as_bool);
            let counts = is("set").unwrap_or(true) && !is("infinite").unwrap_or(false);
            fields.get("number").and_then(Value::as_u64).filter(|_| counts)
        }
        _ => None,
    }
}

fn short(value: &Value) -> String {
    value.to_string().chars().take(60).collect()
}

fn state(word: &str) -> State {
    match word {
        "PENDING" | "REQUEUED" | "REQUEUE_FED" | "SPECIAL_EXIT" => State::Waiting,
        "REQUEUE_HOLD" => State::Held,
        "RUNNING" | "CONFIGURING" | "SUSPENDED" => State::Running,
        "COMPLETING" | "SIGNALING" | "STAGE_OUT" | "STOPPED" => State::Stopping,
        "COMPLETED" => State::Done,
        "CANCELLED" => State::Cancelled,
        "FAILED" | "BOOT_FAIL" | "DEADLINE" | "NODE_FAIL" | "OUT_OF_MEMORY" | "TIMEOUT" | "PREEMPTED" => {
            State::Failed
        }
        _ => State::Unknown,
    }
}

/// Slurm's list of an array's waiting tasks: `0-2,5,7-9:2%4`.
fn tasks(text: &str) -> Vec<u64> {
    let list = text.split('%').next().unwrap_or_default();
    let mut found = Vec::new();
    for part in list.split(',').filter(|part| !part.is_empty()) {
        let (range, step) = part.split_once(':').unwrap_or((part, "1"));
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        // `...` stands for what did not fit.
        let (Ok(first), Ok(last), Ok(step)) =
            (first.parse::<u64>(), last.parse::<u64>(), step.parse::<usize>())
        else {
            continue;
        };
        found.extend((first..=last).step_by(step.max(1)).take(MAX_TASKS - found.len()));
    }
    found
}

/// A log's path: `%j` the number, `%A` that of the array, `%a` the task, `%%` a percent sign.
fn log(pattern: &str, folder: &Path, number: u64, array: Option<u64>, task: Option<u64>) -> PathBuf {
    let mut path = String::new();
    let mut rest = pattern.chars();
    while let Some(c) = rest.next() {
        match (c, c == '%') {
            (_, true) => match rest.next() {
                Some('j') => path.push_str(&number.to_string()),
                Some('A') => path.push_str(&array.unwrap_or(number).to_string()),
                Some('a') => path.push_str(&task.map_or("%a".into(), |task| task.to_string())),
                Some('%') => path.push('%'),
                Some(other) => path.extend(['%', other]),
                None => path.push('%'),
            },
            (c, false) => path.push(c),
        }
    }
    folder.join(path)
}

/// What `cpu=6,mem=300M,gres/gpu=8` says of what we count. A typed device (`gres/gpu:h200=8`) stands beside
/// its untyped count.
pub(super) fn amounts(text: &str) -> Result<Amounts, String> {
    let bounds = bounds(text)?;
    Ok(Amounts {
        devices: bounds.devices.unwrap_or(0),
        cpus: bounds.cpus.unwrap_or(0),
        memory: bounds.memory.unwrap_or(0),
    })
}

/// The same as bounds: what is not named has none.
pub(super) fn bounds(text: &str) -> Result<Bounds, String> {
    let mut bounds = Bounds::default();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (key, value) = part.split_once('=').ok_or_else(|| format!("{part:?} is not NAME=AMOUNT"))?;
        let (slot, unit) = match key {
            "cpu" => (&mut bounds.cpus, 1.0),
            "mem" => (&mut bounds.memory, f64::from(1 << 20)),
            "gres/gpu" => (&mut bounds.devices, WHOLE as f64),
            _ => continue,
        };
        let (digits, factor) = match value.char_indices().last() {
            Some((at, suffix)) if suffix.is_ascii_alphabetic() => (&value[..at], Some(suffix)),
            _ => (value, None),
        };
        let power = match (factor, key) {
            (None, _) => 0,
            (Some(suffix), "mem") => "MGTPE".find(suffix).map_or(-1, |n| n as i32),
            (Some(suffix), _) => "KMGTP".find(suffix).map_or(-1, |n| n as i32 + 1),
        };
        let base: f64 = if key == "mem" { 1024.0 } else { 1000.0 };
        let number: f64 = digits.parse().map_err(|_| format!("{part:?} has no number"))?;
        let amount = match (factor, key) {
            (Some('K'), "mem") => number * 1024.0,
            _ if power < 0 => return Err(format!("{part:?} has a unit that is not known")),
            _ => number * unit * base.powi(power),
        };
        if !(0.0..=1e18).contains(&amount) {
            return Err(format!("{part:?} is no amount"));
        }
        *slot = Some(amount as u64);
    }
    Ok(bounds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_in_slurms_units() {
        let read = amounts("cpu=6,mem=300M,node=1,billing=6,gres/gpu=8,gres/gpu:h200=8").unwrap();
        assert_eq!(read, Amounts { devices: 8000, cpus: 6, memory: 300 << 20 });
        assert_eq!(bounds("mem=1.5G").unwrap().memory, Some(1536 << 20));
        assert_eq!(bounds("mem=12").unwrap().memory, Some(12 << 20));
        assert_eq!(bounds("").unwrap(), Bounds::default());
        for wrong in ["cpu", "cpu=", "cpu=x", "mem=1Q", "cpu=-1", "mem=nan", "cpu=1e300"] {
            assert!(bounds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn tasks_of_an_array_are_counted() {
        assert_eq!(tasks("0-2,5,7-11:2%4"), [0, 1, 2, 5, 7, 9, 11]);
        assert_eq!(tasks(""), Vec::<u64>::new());
        assert_eq!(tasks("3,..."), [3]);
        assert_eq!(tasks("0-18446744073709551615").len(), MAX_TASKS);
    }

    #[test]
    fn a_log_is_where_slurm_writes_it() {
        let path = log("/a 100%%/slurm-%A_%a.out", Path::new("/x"), 7, Some(5), Some(2));
        assert_eq!(path, Path::new("/a 100%/slurm-5_2.out"));
        assert_eq!(log("slurm-%j.out", Path::new("/x"), 7, None, None), Path::new("/x/slurm-7.out"));
    }
}
