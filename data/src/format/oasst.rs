//! Trees of messages as OpenAssistant exports them, made into conversations.
//!
//! Three kinds of records, told apart by their keys: a tree, `{"message_tree_id", "prompt": {..., "replies":
//! [...]}}`; a message of a tree, `{"message_id", "parent_id", "message_tree_id", ...}`, as the rows of
//! OpenAssistant/oasst1 and oasst2 are; and a text of turns, `{"text": "### Human: ...### Assistant: ..."}`, as
//! in timdettmers/openassistant-guanaco.
//!
//! One tree is in memory at a time. So messages of a tree must stand next to each other, in any order, as they
//! do in all published exports; a tree that comes a second time is an error rather than two halves, and so is one
//! of which two files have a part. Whatever a tree's depth, it is walked without recursion.
//!
//! What is usual in an export and cannot be learnt (a tree that was not finished, a prompt nobody answered) is
//! left out and counted; what contradicts itself (two messages of one id, an answer to an answer, a message
//! that is its own ancestor) is an error.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::iter::Peekable;
use std::sync::{Arc, Mutex};

use serde_json::{Map, Value as Json};

use super::marks;
use crate::error::{did_you_mean, named_enum};
use crate::source::{RawContent, RawRecord, Records, kind};
use crate::{DataError, Source};

/// Which conversations a tree gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Paths {
    /// One: at each level the reply that people ranked first, as the Guanaco models were trained.
    #[default]
    Best,
    /// One for each answer that no later answer follows.
    All,
}

named_enum!(Paths, "value of data.oasst_paths", Best = "best", All = "all");

/// What is taken out of trees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Oasst {
    /// Which conversations.
    pub paths: Paths,
    /// Languages of prompts, such as `en` and `pt-BR`; empty: all.
    pub languages: Vec<String>,
}

/// Records that were left out, by the reason.
pub(crate) type LeftOut = Arc<Mutex<BTreeMap<&'static str, usize>>>;

/// Where the trees stand whose messages are records, of all files that are read together, and whether they were
/// whole there.
pub(crate) type Trees = Arc<Mutex<HashMap<String, (Source, bool)>>>;

const NOT_READY: &str = "trees that are not ready for export, by their tree_state";
const NO_PROMPT: &str = "trees without their first message";
const UNFIT_PROMPT: &str = "trees whose prompt was deleted or rejected in review";
const UNANSWERED: &str = "trees without an answer";
const OTHER_LANGUAGE: &str = "trees in languages that data.oasst_languages does not name";
const ORPHAN: &str = "messages whose parent is missing";
const NO_TURNS: &str = "texts in which Human and Assistant do not take turns";

/// The state of a tree that went through all of review and ranking.
const READY: &str = "ready_for_export";
/// Who speaks, in an export and in a chat template.
const ROLES: [(&str, &str); 2] = [("prompter", "user"), ("assistant", "assistant")];
/// What stands before the turns of a text.
const MARKS: [(&str, &str); 2] = [("### Human:", "user"), ("### Assistant:", "assistant")];

/// Whether a record is a tree, or a message of one.
pub(super) fn is_of_tree(record: &Map<String, Json>) -> bool {
    let has = |key: &str| record.contains_key(key);
    is_message(record) || (has("message_tree_id") && has("prompt"))
}

fn is_message(record: &Map<String, Json>) -> bool {
    record.contains_key("message_id") && record.contains_key("role")
}

/// A message of a tree.
struct Node {
    text: String,
    /// Index into [`ROLES`].
    role: usize,
    rank: Option<i64>,
    /// Neither deleted nor rejected in review.
    is_fit: bool,
    language: Option<String>,
    /// Marks of what is not to be learnt.
    marks: Map<String, Json>,
    /// Where errors say that it stands: file and line, and the keys that lead to it there.
    at: Source,
    place: String,
    parent: Option<usize>,
    replies: Vec<usize>,
}

impl Node {
    /// Takes a message's fields.
    fn of(message: &mut Map<String, Json>, at: &Source, place: String) -> Result<Self, DataError> {
        let role = text(message, "role", at, &place)?;
        let names = ROLES.map(|(name, _)| name);
        let role = names.iter().position(|name| *name == role).ok_or_else(|| {
            let hint = did_you_mean(&role, &names);
            let known = names.join(", ");
            DataError::record(
                at,
                format!("{}: unknown role {role:?}{hint}; known: {known}", key(&place, "role")),
            )
        })?;
        let rank = match message.get("rank") {
            None | Some(Json::Null) => None,
            // A table without types for its columns has whole numbers as 1.0.
            Some(rank) => Some(rank.as_f64().filter(|rank| rank.fract() == 0.0).ok_or_else(|| {
                let what = key(&place, "rank");
                DataError::record(at, format!("{what} must be a whole number or null, not {rank}"))
            })? as i64),
        };
        let is_fit = flag(message, "deleted", at, &place)? != Some(true)
            && flag(message, "review_result", at, &place)? != Some(false);
        let language = message.get("lang").and_then(Json::as_str).map(str::to_owned);
        let (text, marks) = (text(message, "text", at, &place)?, marks::carry(message));
        let (at, replies) = (at.clone(), Vec::new());
        Ok(Node { text, role, rank, is_fit, language, marks, at, place, parent: None, replies })
    }

    fn error(&self, field: &str, message: &str) -> DataError {
        DataError::record(&self.at, format!("{}: {message}", key(&self.place, field)))
    }
}

/// A key with those that lead to it.
fn key(place: &str, key: &str) -> String {
    if place.is_empty() { format!("{key:?}") } else { format!("{place}.{key}") }
}

fn text(message: &mut Map<String, Json>, field: &str, at: &Source, place: &str) -> Result<String, DataError> {
    match message.get_mut(field) {
        Some(Json::String(text)) => Ok(std::mem::take(text)),
        Some(other) => {
            let what = key(place, field);
            Err(DataError::record(at, format!("{what} must be a string, not {}", kind(other))))
        }
        None => Err(DataError::record(at, format!("the key {} is missing", key(place, field)))),
    }
}

fn flag(
    message: &Map<String, Json>,
    field: &str,
    at: &Source,
    place: &str,
) -> Result<Option<bool>, DataError> {
    match message.get(field) {
        None | Some(Json::Null) => Ok(None),
        Some(Json::Bool(flag)) => Ok(Some(*flag)),
        Some(other) => {
            let what = key(place, field);
            Err(DataError::record(at, format!("{what} must be true, false or null, not {}", kind(other))))
        }
    }
}

/// The messages of one tree.
struct Tree {
    nodes: Vec<Node>,
    root: Option<usize>,
    state: Option<String>,
    /// Marks of a record that has the tree whole.
    marks: Map<String, Json>,
    /// Messages whose parent is not there, and where the first of them stands, with the parent's id.
    orphans: usize,
    missing: Option<(Source, String)>,
}

impl Tree {
    /// A tree that a record has whole.
    fn of_record(mut record: Map<String, Json>, at: &Source) -> Result<Self, DataError> {
        let state = record.get("tree_state").and_then(Json::as_str).map(str::to_owned);
        let marks = marks::carry(&mut record);
        let mut tree = Tree { nodes: Vec::new(), root: None, state, marks, orphans: 0, missing: None };
        let Some(prompt) = record.remove("prompt").filter(|prompt| !prompt.is_null()) else {
            return Ok(tree);
        };
        tree.root = Some(0);
        let mut ids = HashSet::new();
        let mut open = vec![(prompt, String::from("prompt"), None)];
        while let Some((message, place, parent)) = open.pop() {
            let found = kind(&message);
            let Json::Object(mut message) = message else {
                return Err(DataError::record(at, format!("{place} must be a message, not {found}")));
            };
            let replies = message.remove("replies").unwrap_or_default();
            let node = Node::of(&mut message, at, place)?;
            if let Some(Json::String(id)) = message.remove("message_id")
                && !ids.insert(id)
            {
                return Err(node.error("message_id", "the tree has another message of this id"));
            }
            let (index, place) = (tree.nodes.len(), node.place.clone());
            tree.nodes.push(node);
            tree.join(parent, index)?;
            match replies {
                Json::Null => {}
                Json::Array(replies) => {
                    let reply = |(i, reply)| (reply, format!("{place}.replies[{i}]"), Some(index));
                    open.extend(replies.into_iter().enumerate().map(reply).rev());
                }
                other => {
                    let message = format!("{place}.replies must be a list, not {}", kind(&other));
                    return Err(DataError::record(at, message));
                }
            }
        }
        Ok(tree)
    }

    /// A tree of which each message is a record.
    fn of_messages(messages: Vec<(Map<String, Json>, Source)>) -> Result<Self, DataError> {
        let (nodes, marks) = (Vec::new(), Map::new());
        let mut tree = Tree { nodes, root: None, state: None, marks, orphans: 0, missing: None };
        let (mut ids, mut parents) = (HashMap::new(), Vec::new());
        for (mut message, at) in messages {
            let id = text(&mut message, "message_id", &at, "")?;
            let node = Node::of(&mut message, &at, String::new())?;
            if ids.insert(id, tree.nodes.len()).is_some() {
                return Err(node.error("message_id", "the tree has another message of this id"));
            }
            if tree.state.is_none() {
                tree.state = message.get("tree_state").and_then(Json::as_str).map(str::to_owned);
            }
            parents.push(match message.get("parent_id") {
                None | Some(Json::Null) => None,
                Some(_) => Some(text(&mut message, "parent_id", &at, "")?),
            });
            tree.nodes.push(node);
        }
        for (index, parent) in parents.into_iter().enumerate() {
            match parent.as_ref().map(|parent| ids.get(parent)) {
                None if tree.root.is_some() => {
                    let what = "is null, and the tree has a first message already";
                    return Err(tree.nodes[index].error("parent_id", what));
                }
                None => tree.root = Some(index),
                Some(Some(&parent)) => tree.join(Some(parent), index)?,
                Some(None) => {
                    tree.orphans += 1;
                    let missing = || Some((tree.nodes[index].at.clone(), parent?));
                    tree.missing = tree.missing.take().or_else(missing);
                }
            }
        }
        tree.refuse_circles()?;
        Ok(tree)
    }

    /// Makes a message another's reply. A first message is the prompter's, and an answer follows a question.
    fn join(&mut self, parent: Option<usize>, index: usize) -> Result<(), DataError> {
        self.nodes[index].parent = parent;
        let Some(parent) = parent else { return Ok(()) };
        if self.nodes[parent].role == self.nodes[index].role {
            let (role, _) = ROLES[self.nodes[index].role];
            return Err(
                self.nodes[index].error("role", &format!("the {role} replies to a message of the {role}"))
            );
        }
        self.nodes[parent].replies.push(index);
        Ok(())
    }

    /// Refuses messages that come to themselves by their parents.
    fn refuse_circles(&self) -> Result<(), DataError> {
        let mut is_sound = vec![false; self.nodes.len()];
        let mut open: Vec<usize> =
            (0..self.nodes.len()).filter(|&i| self.nodes[i].parent.is_none()).collect();
        while let Some(index) = open.pop() {
            is_sound[index] = true;
            open.extend(&self.nodes[index].replies);
        }
        match is_sound.iter().position(|sound| !sound) {
            None => Ok(()),
            Some(index) => {
                Err(self.nodes[index].error("parent_id", "following the parents leads back to this message"))
            }
        }
    }

    /// Why nothing can be learnt of the tree; else the answers in which its conversations end, in order.
    fn ends(&self, spec: &Oasst) -> Result<VecDeque<usize>, &'static str> {
        if self.state.as_ref().is_some_and(|state| state != READY) {
            return Err(NOT_READY);
        }
        let root = self.root.ok_or(NO_PROMPT)?;
        let prompt = &self.nodes[root];
        if !prompt.is_fit {
            return Err(UNFIT_PROMPT);
        }
        let is_wanted = |language: &String| spec.languages.iter().any(|wanted| wanted == language);
        if !spec.languages.is_empty() && !prompt.language.as_ref().is_some_and(is_wanted) {
            return Err(OTHER_LANGUAGE);
        }
        let ends = match spec.paths {
            Paths::Best => self.best_end(root).into_iter().collect(),
            Paths::All => self.all_ends(root),
        };
        if ends.is_empty() { Err(UNANSWERED) } else { Ok(ends) }
    }

    /// The replies that nobody deleted or rejected.
    fn fit_replies(&self, index: usize) -> impl DoubleEndedIterator<Item = usize> {
        self.nodes[index].replies.iter().copied().filter(|&reply| self.nodes[reply].is_fit)
    }

    /// The last answer on the way of the best replies. What was not ranked comes after what was.
    fn best_end(&self, root: usize) -> Option<usize> {
        let rank = |&reply: &usize| self.nodes[reply].rank.unwrap_or(i64::MAX);
        let (mut at, mut end) = (root, None);
        while let Some(best) = self.fit_replies(at).min_by_key(rank) {
            at = best;
            end = if self.is_answer(at) { Some(at) } else { end };
        }
        end
    }

    /// Answers that no later answer follows, from the first reply's on.
    fn all_ends(&self, root: usize) -> VecDeque<usize> {
        let (mut answers, mut is_followed) = (Vec::new(), vec![false; self.nodes.len()]);
        let mut open = vec![root];
        while let Some(index) = open.pop() {
            if self.is_answer(index) {
                answers.push(index);
                let earlier = self.nodes[index].parent.and_then(|question| self.nodes[question].parent);
                earlier.into_iter().for_each(|earlier| is_followed[earlier] = true);
            }
            open.extend(self.fit_replies(index).rev());
        }
        answers.into_iter().filter(|&answer| !is_followed[answer]).collect()
    }

    fn is_answer(&self, index: usize) -> bool {
        ROLES[self.nodes[index].role].1 == "assistant"
    }

    /// The conversation that ends in an answer.
    fn conversation(&self, end: usize) -> RawRecord {
        let line = |&index: &usize| self.nodes[index].parent;
        let mut path: Vec<usize> = std::iter::successors(Some(end), line).collect();
        path.reverse();
        let turn = |&index: &usize| {
            let Node { text, role, marks, .. } = &self.nodes[index];
            turn(ROLES[*role].1, text, marks.clone())
        };
        conversation(path.iter().map(turn), self.marks.clone(), self.nodes[path[0]].at.clone())
    }
}

fn turn(role: &str, content: &str, marks: Map<String, Json>) -> Json {
    let mut message = marks;
    message.insert("role".into(), role.into());
    message.insert("content".into(), content.into());
    Json::Object(message)
}

/// A record of the format messages.
fn conversation(turns: impl Iterator<Item = Json>, marks: Map<String, Json>, at: Source) -> RawRecord {
    let mut record = marks;
    record.insert("messages".into(), turns.collect());
    RawRecord { at, indent: 0, content: RawContent::Row(record) }
}

/// The turns of a text, up to the assistant's last; none if they do not alternate.
fn turns(text: &str) -> Option<Vec<(&'static str, &str)>> {
    let mut turns: Vec<(&str, &str)> = Vec::new();
    let mut rest = text;
    let next =
        |text: &str| MARKS.iter().filter_map(|&(mark, role)| Some((text.find(mark)?, mark, role))).min();
    let (begin, ..) = next(rest)?;
    if !rest[..begin].trim().is_empty() {
        return None;
    }
    while let Some((begin, mark, role)) = next(rest) {
        let said = &rest[begin + mark.len()..];
        let end = next(said).map_or(said.len(), |(end, ..)| end);
        turns.push((role, said[..end].strip_prefix(' ').unwrap_or(&said[..end])));
        rest = &said[end..];
    }
    let takes_turns = turns.iter().enumerate().all(|(i, (role, _))| *role == MARKS[i % 2].1);
    turns.truncate(turns.len() / 2 * 2);
    (takes_turns && !turns.is_empty()).then_some(turns)
}

/// A file's records, made into conversations.
pub(super) struct Conversations {
    records: Peekable<Records>,
    spec: Oasst,
    left_out: LeftOut,
    /// The tree at hand, and the answers in which its conversations end.
    tree: Option<(Tree, VecDeque<usize>)>,
    /// Trees of which all messages came.
    seen: HashSet<String>,
    /// Those of other files, too.
    trees: Trees,
    failed: bool,
}

impl Conversations {
    pub(super) fn new(records: Records, spec: Oasst, left_out: LeftOut, trees: Trees) -> Self {
        let (records, tree, seen) = (records.peekable(), None, HashSet::new());
        Conversations { records, spec, left_out, tree, seen, trees, failed: false }
    }

    fn leave_out(&self, why: &'static str, count: usize) {
        if count > 0 {
            *self.left_out.lock().expect("nobody panics with it").entry(why).or_default() += count;
        }
    }

    fn read(&mut self) -> Result<Option<RawRecord>, DataError> {
        loop {
            if let Some((tree, ends)) = &mut self.tree {
                match ends.pop_front() {
                    Some(end) => return Ok(Some(tree.conversation(end))),
                    None => self.tree = None,
                }
            }
            let Some(record) = self.records.next().transpose()? else { return Ok(None) };
            let (mut fields, at) = (record.parse()?, record.at);
            let tree = if is_message(&fields) {
                self.messages(fields, at)?
            } else if is_of_tree(&fields) {
                Tree::of_record(fields, &at)?
            } else if fields.contains_key("text") {
                if !self.spec.languages.is_empty() {
                    let message = "a text of turns does not say its language; leave data.oasst_languages out";
                    return Err(DataError::record(&at, message));
                }
                let (text, marks) = (text(&mut fields, "text", &at, "")?, marks::carry(&mut fields));
                match turns(&text) {
                    Some(turns) => {
                        let turns = turns.into_iter().map(|(role, said)| turn(role, said, Map::new()));
                        return Ok(Some(conversation(turns, marks, at)));
                    }
                    None => self.leave_out(NO_TURNS, 1),
                }
                continue;
            } else {
                return Err(DataError::record(&at, NO_RECORD));
            };
            self.begin(tree)?;
        }
    }

    /// A message with those of its tree that follow.
    fn messages(&mut self, first: Map<String, Json>, at: Source) -> Result<Tree, DataError> {
        let tree_of = |message: &Map<String, Json>, at: &Source| match message.get("message_tree_id") {
            Some(Json::String(id)) => Ok(id.clone()),
            _ => Err(DataError::record(
                at,
                "a message needs \"message_tree_id\", a text, which says to which tree it belongs",
            )),
        };
        let id = tree_of(&first, &at)?;
        if !self.seen.insert(id.clone()) {
            let message = "the messages of this \"message_tree_id\" do not stand next to each other; sort the file by it";
            return Err(DataError::record(&at, message));
        }
        let mut messages = vec![(first, at.clone())];
        while let Some(Ok(next)) = self.records.peek() {
            let (fields, at) = (next.parse()?, next.at.clone());
            if !is_message(&fields) || tree_of(&fields, &at)? != id {
                break;
            }
            self.records.next();
            messages.push((fields, at));
        }
        let tree = Tree::of_messages(messages)?;
        self.refuse_halves(id, &tree, at)?;
        Ok(tree)
    }

    /// Refuses a tree of which another file has messages, too, where one of the two lacks some.
    fn refuse_halves(&self, id: String, tree: &Tree, at: Source) -> Result<(), DataError> {
        let is_whole = tree.missing.is_none() && tree.root.is_some();
        let mut trees = self.trees.lock().expect("nobody panics with it");
        let Some((other, other_is_whole)) = trees.get(&id) else {
            trees.insert(id, (at, is_whole));
            return Ok(());
        };
        if other.file == at.file || (is_whole && *other_is_whole) {
            return Ok(());
        }
        let (at, lacks) = match &tree.missing {
            Some((at, parent)) => {
                (at, format!(", and the parent of this one, {parent:?}, is not in this file"))
            }
            None => (&at, String::new()),
        };
        let message = format!(
            "messages of the tree {id:?} stand at {other}, too{lacks}; put all messages of a tree into one \
             file, next to each other"
        );
        Err(DataError::record(at, message))
    }

    fn begin(&mut self, tree: Tree) -> Result<(), DataError> {
        if let Some(prompt) = tree.root.map(|root| &tree.nodes[root])
            && ROLES[prompt.role].1 != "user"
        {
            return Err(prompt.error("role", "a tree begins with a message of the prompter"));
        }
        self.leave_out(ORPHAN, tree.orphans);
        match tree.ends(&self.spec) {
            Ok(ends) => self.tree = Some((tree, ends)),
            Err(why) => self.leave_out(why, 1),
        }
        Ok(())
    }
}

const NO_RECORD: &str = "is no record of the format oasst: neither a tree (message_tree_id, prompt) nor a message of one \
                         (message_id, parent_id, message_tree_id, role, text) nor a text of turns (text: \
                         \"### Human: ...### Assistant: ...\")";

impl Iterator for Conversations {
    type Item = Result<RawRecord, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let read = self.read();
        self.failed = read.is_err();
        read.transpose()
    }
}
