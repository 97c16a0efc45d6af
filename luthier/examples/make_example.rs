//! Makes the files that the embedded example is made of, all but the weights: `cargo run --release --example
//! make_example`.
//!
//! The text is about a small invented world: people hand things to each other, keep animals, count and talk.
//! Its sentences come from the templates below and a counter, so the same program writes the same bytes on
//! every machine. What is written:
//!
//! - `example/base/`: `config.json` and a tokenizer trained on the text, the folder from which pretraining
//!   starts;
//! - `example/train.jsonl`, `example/eval.jsonl`: conversations that ask for a happening as JSON, and
//!   held-out ones;
//! - the folder given as argument (default `target/example`): `text.jsonl`, the pretraining text, which is
//!   not kept.
//!
//! `example/README.md` tells how the weights are made from that.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::json;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, TokenizerBuilder};

/// Texts to pretrain on.
const TEXTS: usize = 110_000;
/// The first texts, which only echo: copying is learnt soonest by itself, and all else needs it.
const ECHOES: usize = 20_000;
/// The last texts, by which pretraining is watched.
const HELD_OUT_TEXTS: usize = 200;
/// The texts that the tokenizer is trained on: the last ones.
const TOKENIZER_TEXTS: usize = 20_000;
/// Conversations to fine-tune on.
const TRAIN: usize = 2_400;
/// Held-out conversations.
const EVAL: usize = 100;
/// Size of the vocabulary, special tokens included.
const VOCABULARY: usize = 1024;

/// Ends a text and every turn of a conversation.
const END: &str = "<|end|>";
/// Open a turn.
const ROLES: [&str; 2] = ["<|user|>", "<|assistant|>"];

/// How a conversation is written down.
const TEMPLATE: &str = "{% for message in messages %}{{ '<|' + message.role + '|>' }}\
    {% if message.role == 'assistant' %}{% generation %}{{ message.content + eos_token }}{% endgeneration %}\
    {% else %}{{ message.content + eos_token }}{% endif %}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";

/// The people. The last ones of each of these lists (see [`World::fine_tuning`]) are in the pretraining text
/// and in held-out conversations, but in none that is trained on.
const NAMES: [&str; 40] = [
    "Anna", "Ben", "Clara", "David", "Emma", "Finn", "Greta", "Hugo", "Ida", "Jack", "Kate", "Leo", "Mia",
    "Noah", "Olga", "Paul", "Rosa", "Sam", "Tom", "Uma", "Victor", "Wanda", "Zoe", "Adam", "Bella", "Carl",
    "Dora", "Eric", "Fay", "George", "Helen", "Ivan", "Jane", "Karl", "Lucy", "Max", "Nina", "Oscar",
    "Peter", "Ruth",
];
const COLOURS: [&str; 8] = ["red", "blue", "green", "yellow", "white", "black", "brown", "pink"];
const THINGS: [&str; 24] = [
    "ball", "book", "hat", "cup", "kite", "drum", "lamp", "boat", "coat", "bag", "box", "bell", "key",
    "chair", "clock", "pen", "ring", "rope", "spoon", "train", "basket", "blanket", "mirror", "umbrella",
];
/// A place and the words that lead to it.
const PLACES: [(&str, &str); 20] = [
    ("in", "park"),
    ("in", "garden"),
    ("at", "school"),
    ("in", "kitchen"),
    ("on", "hill"),
    ("by", "river"),
    ("in", "forest"),
    ("at", "market"),
    ("on", "bridge"),
    ("in", "library"),
    ("by", "lake"),
    ("at", "station"),
    ("in", "barn"),
    ("on", "beach"),
    ("in", "tower"),
    ("at", "farm"),
    ("in", "castle"),
    ("by", "well"),
    ("in", "museum"),
    ("at", "harbour"),
];
const ANIMALS: [&str; 10] =
    ["dog", "cat", "horse", "goat", "duck", "mouse", "fox", "sheep", "rabbit", "bird"];
const PETS: [&str; 8] = ["Rex", "Lola", "Spot", "Coco", "Bruno", "Daisy", "Milo", "Pip"];
const FRUITS: [&str; 8] = ["apples", "pears", "plums", "nuts", "cherries", "figs", "lemons", "melons"];
const NUMBERS: [&str; 13] =
    ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"];
/// Small words that are said and written by themselves.
const WORDS: [&str; 8] = ["who", "what", "to", "where", "when", "from", "how", "why"];
const MOODS: [&str; 6] = ["happy", "sad", "tired", "hungry", "cold", "proud"];
const TIMES: [&str; 6] =
    ["One morning", "One day", "In the evening", "On Monday", "After lunch", "In spring"];

/// Random numbers: SplitMix64 (Steele, Lea and Flood, 2014), a counter and a mixing function.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((u128::from(z ^ (z >> 31)) * n as u128) >> 64) as usize
    }

    fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// The words that may be used.
#[derive(Clone, Copy)]
struct World {
    names: &'static [&'static str],
    things: &'static [&'static str],
    places: &'static [(&'static str, &'static str)],
}

impl World {
    /// All of it.
    fn whole() -> Self {
        Self { names: &NAMES, things: &THINGS, places: &PLACES }
    }

    /// The part that the fine-tuning set shows.
    fn fine_tuning() -> Self {
        Self { names: &NAMES[..34], things: &THINGS[..20], places: &PLACES[..17] }
    }

    /// `N` people who are not the same.
    fn people<const N: usize>(self, random: &mut Random) -> [&'static str; N] {
        let mut people = [""; N];
        for i in 0..N {
            while people[i].is_empty() || people[..i].contains(&people[i]) {
                people[i] = random.pick(self.names);
            }
        }
        people
    }

    fn thing(self, random: &mut Random) -> String {
        format!("{} {}", random.pick(&COLOURS), random.pick(self.things))
    }

    fn handover(self, random: &mut Random) -> Handover {
        let [giver, receiver] = self.people(random);
        let (preposition, place) = random.pick(self.places);
        Handover { giver, receiver, thing: self.thing(random), preposition, place }
    }
}

/// Somebody gives something to somebody somewhere.
#[derive(Clone)]
struct Handover {
    giver: &'static str,
    receiver: &'static str,
    thing: String,
    preposition: &'static str,
    place: &'static str,
}

impl Handover {
    /// The happening in one or two sentences, in one of many ways.
    fn tell(&self, random: &mut Random) -> String {
        let Handover { giver: a, receiver: b, thing: t, preposition, place } = self;
        let at = format!("{preposition} the {place}");
        let told = match random.below(10) {
            0 => format!("{a} gave the {t} to {b} {at}."),
            1 => format!("{a} gave {b} the {t} {at}."),
            2 => format!("{b} got the {t} from {a} {at}."),
            3 => format!("{b} took the {t} from {a} {at}."),
            4 => format!("{a} met {b} {at} and handed over the {t}."),
            5 => format!("{b} was {at}. {a} came and brought the {t}."),
            6 => format!("{a} had the {t}. {}, {a} gave it to {b}.", capital(&at)),
            7 => format!("{}, {a} sold the {t} to {b}.", capital(&at)),
            8 => format!("{}, {b} got the {t}. It was from {a}.", capital(&at)),
            _ => format!("The {t} went from {a} to {b} {at}."),
        };
        if random.one_in(4) { format!("{}, {}", random.pick(&TIMES), small(&told, self)) } else { told }
    }

    /// What is asked of the fine-tuned model.
    fn json(&self) -> String {
        let Handover { giver, receiver, thing, place, .. } = self;
        format!(r#"{{"who": "{giver}", "what": "{thing}", "to": "{receiver}", "where": "{place}"}}"#)
    }

    /// Something that follows from the happening.
    fn consequence(&self, random: &mut Random) -> String {
        let Handover { giver: a, receiver: b, thing: t, preposition, place } = self;
        let at = format!("{preposition} the {place}");
        match random.below(12) {
            0 => format!("Now {b} had the {t}."),
            1 => format!("{b} thanked {a} for the {t}."),
            2 => format!("{a} did not have the {t} any more."),
            3 => format!("{a} and {b} were {at}."),
            4 => format!("Who gave the {t}? {a}."),
            5 => format!("Who got the {t}? {b}."),
            6 => format!("What did {b} get? The {t}."),
            7 => format!("What did {a} give? The {t}."),
            8 => format!("Where were {a} and {b}? {}.", capital(&at)),
            9 => format!("\"{a}, thank you for the {t},\" said {b}."),
            10 => format!("\"{b}, take the {t},\" said {a}."),
            _ => format!("\"{place}\", \"{t}\", \"{a}\" and \"{b}\" were the words."),
        }
    }
}

/// The text with its first letter as a capital.
fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

/// The sentence as it reads in the middle of another: names keep their capital.
fn small(sentence: &str, of: &Handover) -> String {
    if sentence.starts_with(of.giver) || sentence.starts_with(of.receiver) {
        return sentence.to_owned();
    }
    let mut letters = sentence.chars();
    letters.next().map_or(String::new(), |first| first.to_lowercase().chain(letters).collect())
}

/// A sentence that has nothing to do with the rest.
fn aside(name: &str, world: World, random: &mut Random) -> String {
    let (preposition, place) = random.pick(world.places);
    match random.below(4) {
        0 => format!("{name} was {}.", random.pick(&MOODS)),
        1 => format!("{name} had {} {}.", random.pick(&NUMBERS[2..]), random.pick(&FRUITS)),
        2 => format!("{name} was {preposition} the {place}."),
        _ => format!("{name} liked the {}.", random.pick(&ANIMALS)),
    }
}

/// One or two handovers, and what follows from them.
fn story(random: &mut Random) -> String {
    let world = World::whole();
    let handovers: Vec<Handover> =
        (0..if random.one_in(3) { 2 } else { 1 }).map(|_| world.handover(random)).collect();
    let mut sentences = Vec::new();
    for handover in &handovers {
        if random.one_in(3) {
            let name = random.pick(world.names);
            sentences.push(aside(name, world, random));
        }
        sentences.push(handover.tell(random));
    }
    for _ in 0..3 + random.below(4) {
        let handover = &handovers[random.below(handovers.len())];
        sentences.push(handover.consequence(random));
    }
    sentences.join(" ")
}

/// A chain: a thing that goes from hand to hand.
fn chain(random: &mut Random) -> String {
    let world = World::whole();
    let people: [&str; 4] = world.people(random);
    let thing = world.thing(random);
    let mut text = format!("{} had the {thing}.", people[0]);
    for pair in people.windows(2) {
        let (preposition, place) = random.pick(world.places);
        let handover =
            Handover { giver: pair[0], receiver: pair[1], thing: thing.clone(), preposition, place };
        write!(text, " {}", handover.tell(random)).expect("writing to a string");
    }
    write!(text, " At last {} had the {thing}.", people[3]).expect("writing to a string");
    text
}

/// Somebody counts.
fn counting(random: &mut Random) -> String {
    let [a, b] = World::whole().people(random);
    let (fruit, has, more) = (random.pick(&FRUITS), 1 + random.below(6), 1 + random.below(6));
    let (first, second, sum) = (NUMBERS[has], NUMBERS[more], NUMBERS[has + more]);
    if random.one_in(2) {
        format!("{a} had {first} {fruit}. {b} gave {a} {second} more. Now {a} had {sum} {fruit}.")
    } else {
        format!("{a} had {sum} {fruit} and ate {second}. Then {a} had {first}.")
    }
}

/// Somebody has an animal, and a card is written about it.
fn animal(random: &mut Random) -> String {
    let [name, friend] = World::whole().people(random);
    let (animal, pet) = (random.pick(&ANIMALS), random.pick(&PETS));
    let (preposition, place) = random.pick(&PLACES);
    let mut text = format!(
        "{name} had a {animal}. The {animal} was called {pet}. {pet} lived {preposition} the {place}."
    );
    let card = match random.below(4) {
        0 => format!("{{\"owner\": \"{name}\", \"animal\": \"{animal}\"}}"),
        1 => format!("{{\"animal\": \"{animal}\", \"name\": \"{pet}\", \"home\": \"{place}\"}}"),
        2 => format!("{{\"home\": \"{place}\", \"owner\": \"{name}\"}}"),
        _ => format!("\"{name}\", \"{animal}\", \"{place}\""),
    };
    match random.below(3) {
        0 => write!(text, " {friend} wrote a card: {card}"),
        1 => write!(text, " {name} was {}. {friend} wrote a card: {card}", random.pick(&MOODS)),
        _ => write!(
            text,
            " {friend} liked {pet}. \"{name}, where is {pet}?\" \"{} the {place}.\"",
            capital(preposition)
        ),
    }
    .expect("writing to a string");
    text
}

/// Words that are said again in the same order: nothing teaches copying sooner.
fn echo(random: &mut Random) -> String {
    let word = |random: &mut Random| match random.below(7) {
        6 => random.pick(&WORDS),
        0..=2 => random.pick(&NAMES),
        3 => random.pick(&COLOURS),
        4 => random.pick(&THINGS),
        _ => random.pick(&PLACES).1,
    };
    let name = random.pick(&NAMES);
    let words: Vec<&str> = (0..4 + random.below(9)).map(|_| word(random)).collect();
    let quoted: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
    let (plain, quoted) = (words.join(" "), quoted.join(", "));
    match random.below(4) {
        0 => format!("{name} said: {plain}. The echo said: {plain}."),
        1 => format!("{name} read {plain} and wrote {quoted}."),
        2 => format!("{name} wrote {quoted} and read {plain}."),
        _ => format!("{name} sang: {plain}, {plain}, {plain}."),
    }
}

/// A list that is said again.
fn list(random: &mut Random) -> String {
    let world = World::whole();
    let [a, b] = world.people(random);
    let things: Vec<String> = (0..2 + random.below(3)).map(|_| world.thing(random)).collect();
    let quoted: Vec<String> = things.iter().map(|thing| format!("\"{thing}\"")).collect();
    match random.below(3) {
        0 => format!("{a} saw these things: {}. {b} saw them too: {}.", things.join(", "), things.join(", ")),
        1 => format!("{a} had a list: {}. It said {}.", things.join(", "), quoted.join(", ")),
        _ => format!("{a} wrote {{\"list\": [{}]}} and read: {}.", quoted.join(", "), things.join(", ")),
    }
}

/// Somebody is told something and asked about it, in the turns of a conversation; the answers are prose or a
/// card.
fn talk(random: &mut Random) -> String {
    let world = World::whole();
    let handover = world.handover(random);
    let Handover { giver, receiver, thing, place, .. } = &handover;
    let told = handover.tell(random);
    let animal = random.pick(&ANIMALS);
    let (asked, answered) = match random.below(5) {
        0 => (format!("{told} Who gave the {thing}?"), format!("{giver} gave the {thing}.")),
        1 => (format!("{told} Who got the {thing}?"), format!("{receiver} got the {thing}.")),
        2 => (format!("{told} Where were they?"), format!("They were {} the {place}.", handover.preposition)),
        3 => (told, handover.consequence(random)),
        _ => (
            format!("{giver} had a {animal} {} the {place}. A card, please.", handover.preposition),
            format!("{{\"owner\": \"{giver}\", \"animal\": \"{animal}\", \"home\": \"{place}\"}}"),
        ),
    };
    format!("{}{asked}{END}{}{answered}", ROLES[0], ROLES[1])
}

/// The text with this number: a conversation, or one to three passages.
fn text(number: usize, random: &mut Random) -> String {
    if number >= ECHOES && random.one_in(4) {
        return talk(random);
    }
    let passages: Vec<String> = (0..1 + random.below(3))
        .map(|_| match random.below(16) {
            _ if number < ECHOES => echo(random),
            0..=6 => story(random),
            7 => chain(random),
            8 => counting(random),
            9 | 10 => animal(random),
            11 => list(random),
            _ => echo(random),
        })
        .collect();
    passages.join("\n")
}

/// What the user says about a handover: it, and sometimes something else.
fn question(handover: &Handover, world: World, random: &mut Random) -> String {
    let told = handover.tell(random);
    let name = loop {
        let name = random.pick(world.names);
        if name != handover.giver && name != handover.receiver {
            break name;
        }
    };
    match random.below(4) {
        0 => format!("{} {told}", aside(name, world, random)),
        1 => format!("{told} {}", aside(name, world, random)),
        _ => told,
    }
}

/// `count` conversations as lines of JSON. No happening is in `seen`, nor twice.
fn conversations(count: usize, world: World, seen: &mut BTreeSet<String>, random: &mut Random) -> String {
    let mut lines = String::new();
    let mut left = count;
    while left > 0 {
        let handover = world.handover(random);
        let (question, answer) = (question(&handover, world, random), handover.json());
        if !seen.insert(answer.clone()) {
            continue;
        }
        let messages =
            json!([{"role": "user", "content": question}, {"role": "assistant", "content": answer}]);
        writeln!(lines, "{}", json!({ "messages": messages })).expect("writing to a string");
        left -= 1;
    }
    lines
}

/// A byte-level BPE of the texts, as tokenizer.json has it.
fn tokenizer(texts: &[String]) -> Result<String, Box<dyn Error + Send + Sync>> {
    let split = ByteLevel::new(false, true, true);
    let special = [END].into_iter().chain(ROLES).map(|token| AddedToken::from(token, true)).collect();
    let mut trainer = BpeTrainer::builder()
        .vocab_size(VOCABULARY)
        .min_frequency(2)
        .show_progress(false)
        .special_tokens(special)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut tokenizer = TokenizerBuilder::<BPE, _, _, _, _>::new()
        .with_model(BPE::default())
        .with_normalizer(None::<tokenizers::NormalizerWrapper>)
        .with_pre_tokenizer(Some(split))
        .with_post_processor(None::<tokenizers::PostProcessorWrapper>)
        .with_decoder(Some(split))
        .build()?;
    tokenizer.train(&mut trainer, texts.iter())?;
    tokenizer.to_string(true)
}

fn pretty(value: &serde_json::Value) -> String {
    format!("{value:#}\n")
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the workspace");
    let scratch = std::env::args_os().nth(1).map_or_else(|| root.join("target/example"), Into::into);
    let (example, base) = (root.join("example"), scratch.join("base"));
    fs::create_dir_all(&base)?;
    fs::create_dir_all(&example)?;

    let random = &mut Random(1);
    let texts: Vec<String> = (0..TEXTS).map(|number| text(number, random)).collect();
    let lines: Vec<String> = texts.iter().map(|text| format!("{}\n", json!({ "text": text }))).collect();
    let (held_out, lines) =
        lines.split_last_chunk::<HELD_OUT_TEXTS>().map(|(a, b)| (b, a)).expect("enough texts");
    fs::write(scratch.join("text.jsonl"), lines.concat())?;
    fs::write(scratch.join("text-eval.jsonl"), held_out.concat())?;

    let seen = &mut BTreeSet::new();
    fs::write(example.join("train.jsonl"), conversations(TRAIN, World::fine_tuning(), seen, &mut Random(2)))?;
    fs::write(example.join("eval.jsonl"), conversations(EVAL, World::whole(), seen, &mut Random(3)))?;

    fs::write(base.join("tokenizer.json"), tokenizer(&texts[TEXTS - TOKENIZER_TEXTS..])?)?;
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "model_max_length": 512,
        "clean_up_tokenization_spaces": false,
        "chat_template": TEMPLATE,
    });
    fs::write(base.join("tokenizer_config.json"), pretty(&config))?;
    fs::write(base.join("generation_config.json"), pretty(&json!({ "eos_token_id": 0 })))?;
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": 128,
        "intermediate_size": 320,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500.0,
        "attention_bias": false,
        "mlp_bias": false,
        "tie_word_embeddings": true,
        "initializer_range": 0.05,
        "bos_token_id": null,
        "eos_token_id": 0,
        "dtype": "bfloat16",
    });
    fs::write(base.join("config.json"), pretty(&config))?;
    Ok(())
}
