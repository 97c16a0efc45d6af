//! What is odd about a record: it can be trained on, but its author may not have meant it so.

use crate::format::{Chat, Item};

/// Something odd about one record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Oddity {
    /// None of its tokens carries loss.
    NothingLearnt,
    /// Some of what is learnt cannot be spelt by the vocabulary.
    Unknown,
    /// What is learnt does not end in an end token.
    NoEnd,
    /// What is learnt ends in a special token at which the model does not stop.
    OtherEnd,
    /// The prompt's last token is one with the completion's first.
    Joined,
    /// Something that somebody says is empty.
    Empty,
    /// The last turn is not the assistant's, and so is not answered.
    Unanswered,
    /// The roles do not take turns, in these words.
    Order(String),
}

impl Oddity {
    /// What can be seen of an item before it is tokenized.
    pub(crate) fn of(item: &Item) -> Vec<Oddity> {
        match item {
            Item::Chat(chat) => of_chat(chat),
            Item::Completion { completion, .. } if completion.trim().is_empty() => vec![Oddity::Empty],
            Item::Text(text) if text.trim().is_empty() => vec![Oddity::Empty],
            _ => Vec::new(),
        }
    }
}

fn of_chat(chat: &Chat) -> Vec<Oddity> {
    let mut oddities = Vec::new();
    let is_empty = |message: &serde_json::Map<String, serde_json::Value>| {
        let text = |key: &str| message.get(key).and_then(|value| value.as_str()).unwrap_or_default().trim();
        let says = ["content", "input", "reasoning_content", "thinking", "reasoning"];
        says.iter().all(|key| text(key).is_empty()) && !message.contains_key("tool_calls")
    };
    if chat.messages.iter().any(is_empty) {
        oddities.push(Oddity::Empty);
    }
    let roles: Vec<&str> = chat.messages.iter().filter_map(|message| message.get("role")?.as_str()).collect();
    if roles.last().is_some_and(|&role| role != "assistant") {
        oddities.push(Oddity::Unanswered);
    }
    oddities.extend(order(&roles).map(Oddity::Order));
    oddities
}

/// Where roles do not take turns: the first such place, in words.
fn order(roles: &[&str]) -> Option<String> {
    let is_system = |role: &str| role == "system" || role == "developer";
    let late = roles.iter().skip(1).position(|role| is_system(role));
    let late = late.filter(|&i| !is_system(roles[i])).map(|i| format!("a system message in place {}", i + 2));
    let twice = roles.windows(2).position(|pair| pair[0] == pair[1] && pair[0] != "tool");
    let twice = twice
        .map(|i| format!("two messages of the {} in a row, in places {} and {}", roles[i], i + 1, i + 2));
    let begun = roles.iter().find(|role| !is_system(role)).filter(|&&role| role != "user");
    begun.map(|role| format!("the {role} speaks first")).or(twice).or(late)
}
