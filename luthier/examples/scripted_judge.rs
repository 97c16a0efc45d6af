//! A stand-in for a judge: an endpoint of OpenAI's interface on loopback that scores answers by the words
//! that they share with a reference. It understands nothing; it shows that `eval judge` works without a key or a
//! bill, and what its tables look like.
//!
//! ```text
//! cargo run --release --example scripted_judge -- REFERENCES.jsonl
//! ```
//!
//! REFERENCES.jsonl has conversations, `{"messages": [...]}`, whose last answers are the references. The
//! address is printed on a line of its own; the judge then answers until it is ended. An answer gets
//! 1 + 9 F1 points of its words and the reference's, both orders alike.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::exit;
use std::sync::Arc;
use std::thread;

use serde_json::{Value, json};

/// A longer request is none of `eval judge`.
const MAX_BYTES: usize = 16 << 20;
/// The longest head of a request.
const MAX_HEAD: u64 = 64 << 10;

/// Of each question the answer that it should get.
pub(crate) type References = HashMap<String, String>;

fn main() {
    let path = std::env::args().nth(1).unwrap_or_else(|| fail("REFERENCES.jsonl is missing"));
    let references =
        Arc::new(references(Path::new(&path)).unwrap_or_else(|error| fail(&format!("{path}: {error}"))));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap_or_else(|error| fail(&error.to_string()));
    let address = listener.local_addr().expect("it is bound");
    println!("http://{address}/v1");
    io::stdout().flush().expect("stdout is open");
    for stream in listener.incoming().map_while(Result::ok) {
        let references = Arc::clone(&references);
        // A client that goes away takes its answer with it, and nothing else.
        thread::spawn(move || serve(&stream, &references).ok());
    }
}

fn fail(message: &str) -> ! {
    eprintln!("error: {message}");
    exit(2)
}

/// The questions of conversations with their last answers.
pub(crate) fn references(path: &Path) -> Result<References, String> {
    let mut references = References::new();
    for (number, line) in
        std::fs::read_to_string(path).map_err(|error| error.to_string())?.lines().enumerate()
    {
        let record: Value =
            serde_json::from_str(line).map_err(|error| format!("line {}: {error}", number + 1))?;
        let last = |role: &str| {
            let messages = record["messages"].as_array()?;
            messages.iter().rfind(|message| message["role"] == role)?["content"].as_str()
        };
        let (Some(question), Some(answer)) = (last("user"), last("assistant")) else {
            return Err(format!("line {}: no question with an answer", number + 1));
        };
        references.insert(question.trim().to_owned(), answer.to_owned());
    }
    Ok(references)
}

/// Answers the requests of a connection, one after the other.
pub(crate) fn serve(stream: &TcpStream, references: &References) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    while let Some(body) = read_request(&mut reader)? {
        let (status, answer) = match judge(&body, references) {
            Ok(reply) => ("200 OK", said(&body, &reply)),
            Err(message) => ("400 Bad Request", json!({"error": {"message": message}})),
        };
        let answer = answer.to_string();
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            answer.len()
        );
        let mut stream = stream;
        stream.write_all((head + &answer).as_bytes())?;
    }
    Ok(())
}

/// The body of the next request; none where the client is done.
fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut length = 0;
    let mut head = reader.by_ref().take(MAX_HEAD);
    loop {
        let mut line = String::new();
        if head.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        if line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().ok().filter(|&bytes| bytes <= MAX_BYTES).unwrap_or(0);
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some(body))
}

/// Scores for both answers in a request, and why.
fn judge(body: &[u8], references: &References) -> Result<String, String> {
    let request: Value = serde_json::from_slice(body).map_err(|error| format!("no JSON: {error}"))?;
    let shown = request["messages"].as_array().and_then(|all| all.last()?["content"].as_str());
    let shown = shown.ok_or("no messages")?;
    let between = |from: &str, to: &str| {
        let rest = &shown[shown.find(from)? + from.len()..];
        Some(rest[..rest.find(to)?].trim())
    };
    let answer = |n: u8| {
        between(
            &format!("[The Start of Assistant {n}'s Answer]"),
            &format!("[The End of Assistant {n}'s Answer]"),
        )
    };
    let question = between("[Question]", "[The Start of Assistant 1's Answer]").ok_or("no [Question]")?;
    let (Some(first), Some(second)) = (answer(1), answer(2)) else {
        return Err("no two answers".into());
    };
    let reference =
        references.get(question).ok_or_else(|| format!("no reference to the question {question:?}"))?;
    let [first, second] = [first, second].map(|answer| 1.0 + 9.0 * shared(answer, reference));
    Ok(format!("{first:.1} {second:.1}\nBy the words that each shares with the reference."))
}

/// F1 of the words of two texts: 0 if they share none, 1 if they have the same.
fn shared(answer: &str, reference: &str) -> f64 {
    let words = |text: &str| {
        let mut counts = HashMap::<String, usize>::new();
        let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
        words.for_each(|word| *counts.entry(word.to_lowercase()).or_default() += 1);
        counts
    };
    let (answer, reference) = (words(answer), words(reference));
    let count = |words: &HashMap<String, usize>| words.values().sum::<usize>();
    let both: usize = answer.iter().map(|(word, &n)| n.min(reference.get(word).copied().unwrap_or(0))).sum();
    2.0 * both as f64 / (count(&answer) + count(&reference)).max(1) as f64
}

fn said(request: &[u8], reply: &str) -> Value {
    // Four bytes are a token, as `eval judge` counts where an endpoint does not.
    let (asked, answered) = (request.len() / 4, reply.len() / 4);
    json!({
        "choices": [{"index": 0, "message": {"role": "assistant", "content": reply}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered},
    })
}
