//! Porter's stemmer.

use std::borrow::Cow;

/// The stem of a word of lower-case ASCII letters and digits, by Porter's algorithm ("An algorithm for suffix
/// stripping", 1980) with the extensions that NLTK has by default (`nltk/stem/porter.py`, `NLTK_EXTENSIONS`),
/// which are what rouge-score uses. Linear in the word. What is not a letter counts as a consonant.
pub fn stem(word: &str) -> Cow<'_, str> {
    const IRREGULAR: &[(&str, &str)] = &[
        ("skies", "sky"),
        ("sky", "sky"),
        ("dying", "die"),
        ("lying", "lie"),
        ("tying", "tie"),
        ("news", "news"),
        ("innings", "inning"),
        ("inning", "inning"),
        ("outings", "outing"),
        ("outing", "outing"),
        ("cannings", "canning"),
        ("canning", "canning"),
        ("howe", "howe"),
        ("proceed", "proceed"),
        ("exceed", "exceed"),
        ("succeed", "succeed"),
    ];
    if let Some((_, stem)) = IRREGULAR.iter().find(|(form, _)| *form == word) {
        return Cow::Borrowed(stem);
    }
    if word.len() <= 2 || !word.is_ascii() {
        return Cow::Borrowed(word);
    }
    let word = plurals(word.to_string());
    let word = past(word);
    let word = final_y(word);
    let word = double_suffixes(word);
    let word = apply(word, STEP_3, |stem| measure(stem) > 0);
    let word = single_suffixes(word);
    Cow::Owned(double_l(final_e(word)))
}

/// Whether a letter is a consonant, for each letter: not a, e, i, o or u, nor y after a consonant.
fn consonants(word: &str) -> impl Iterator<Item = bool> + '_ {
    word.bytes().scan(false, |before, letter| {
        *before = match letter {
            b'a' | b'e' | b'i' | b'o' | b'u' => false,
            b'y' => !*before,
            _ => true,
        };
        Some(*before)
    })
}

/// Porter's m: how often a vowel is followed by a consonant.
fn measure(stem: &str) -> usize {
    let mut after_vowel = false;
    consonants(stem).filter(|&consonant| std::mem::replace(&mut after_vowel, !consonant) && consonant).count()
}

fn has_vowel(stem: &str) -> bool {
    consonants(stem).any(|consonant| !consonant)
}

/// Porter's *d: ends with a consonant twice.
fn ends_doubled(word: &str) -> bool {
    let bytes = word.as_bytes();
    bytes.len() >= 2
        && bytes[bytes.len() - 1] == bytes[bytes.len() - 2]
        && consonants(word).last() == Some(true)
}

/// Porter's *o: ends with consonant, vowel and a consonant that is not w, x or y; by NLTK also a word of just
/// vowel and consonant.
fn ends_short(word: &str) -> bool {
    let mut last = [false; 3];
    consonants(word).for_each(|consonant| last = [last[1], last[2], consonant]);
    match word.len() {
        0 | 1 => false,
        2 => !last[1] && last[2],
        _ => last == [true, false, true] && !word.ends_with(['w', 'x', 'y']),
    }
}

/// Step 1a.
fn plurals(word: String) -> String {
    if word.len() == 4 && word.ends_with("ies") {
        return replaced(word, 3, "ie");
    }
    apply(word, &[("sses", "ss"), ("ies", "i"), ("ss", "ss"), ("s", "")], |_| true)
}

/// Step 1b.
fn past(word: String) -> String {
    if word.ends_with("ied") {
        let end = if word.len() == 4 { "ie" } else { "i" };
        return replaced(word, 3, end);
    }
    if let Some(stem) = word.strip_suffix("eed") {
        return if measure(stem) > 0 { replaced(word, 1, "") } else { word };
    }
    let stem = ["ed", "ing"].iter().find_map(|end| word.strip_suffix(end).filter(|stem| has_vowel(stem)));
    let Some(stem) = stem else { return word };
    if stem.ends_with("at") || stem.ends_with("bl") || stem.ends_with("iz") {
        return format!("{stem}e");
    }
    if ends_doubled(stem) {
        let kept = if stem.ends_with(['l', 's', 'z']) { stem.len() } else { stem.len() - 1 };
        return stem[..kept].to_string();
    }
    if measure(stem) == 1 && ends_short(stem) { format!("{stem}e") } else { stem.to_string() }
}

/// Step 1c, as NLTK has it: after a consonant that does not stand alone.
fn final_y(word: String) -> String {
    let after_consonant = |stem: &str| stem.len() > 1 && consonants(stem).last() == Some(true);
    if word.strip_suffix('y').is_some_and(after_consonant) { replaced(word, 1, "i") } else { word }
}

/// Step 2.
fn double_suffixes(word: String) -> String {
    // By NLTK this comes first, and its result passes through the step again.
    if word.strip_suffix("alli").is_some_and(|stem| measure(stem) > 0) {
        return double_suffixes(replaced(word, 4, "al"));
    }
    // The l of "logi" counts with the stem, so that "geo" and "theo" are like "archaeo"; nothing before it in
    // the list ends with it.
    if word.ends_with("logi") {
        let long = measure(&word[..word.len() - 3]) > 0;
        return if long { replaced(word, 1, "") } else { word };
    }
    apply(word, STEP_2, |stem| measure(stem) > 0)
}

const STEP_2: &[(&str, &str)] = &[
    ("ational", "ate"),
    ("tional", "tion"),
    ("enci", "ence"),
    ("anci", "ance"),
    ("izer", "ize"),
    ("bli", "ble"),
    ("alli", "al"),
    ("entli", "ent"),
    ("eli", "e"),
    ("ousli", "ous"),
    ("ization", "ize"),
    ("ation", "ate"),
    ("ator", "ate"),
    ("alism", "al"),
    ("iveness", "ive"),
    ("fulness", "ful"),
    ("ousness", "ous"),
    ("aliti", "al"),
    ("iviti", "ive"),
    ("biliti", "ble"),
    ("fulli", "ful"),
];

const STEP_3: &[(&str, &str)] = &[
    ("icate", "ic"),
    ("ative", ""),
    ("alize", "al"),
    ("iciti", "ic"),
    ("ical", "ic"),
    ("ful", ""),
    ("ness", ""),
];

const STEP_4: &[(&str, &str)] = &[
    ("al", ""),
    ("ance", ""),
    ("ence", ""),
    ("er", ""),
    ("ic", ""),
    ("able", ""),
    ("ible", ""),
    ("ant", ""),
    ("ement", ""),
    ("ment", ""),
    ("ent", ""),
    ("ou", ""),
    ("ism", ""),
    ("ate", ""),
    ("iti", ""),
    ("ous", ""),
    ("ive", ""),
    ("ize", ""),
];

/// Step 4.
fn single_suffixes(word: String) -> String {
    match word.strip_suffix("ion") {
        Some(stem) if stem.ends_with(['s', 't']) && measure(stem) > 1 => replaced(word, 3, ""),
        Some(_) => word,
        None => apply(word, STEP_4, |stem| measure(stem) > 1),
    }
}

/// Step 5a.
fn final_e(word: String) -> String {
    let goes = |stem: &str| match measure(stem) {
        0 => false,
        1 => !ends_short(stem),
        _ => true,
    };
    if word.strip_suffix('e').is_some_and(goes) { replaced(word, 1, "") } else { word }
}

/// Step 5b.
fn double_l(word: String) -> String {
    let goes = word.ends_with("ll") && measure(&word[..word.len() - 1]) > 1;
    if goes { replaced(word, 1, "") } else { word }
}

/// The first rule whose ending the word has decides: its stem with another ending, if it is one of which
/// `holds`, else the word as it is.
fn apply(word: String, rules: &[(&str, &str)], holds: impl Fn(&str) -> bool) -> String {
    let rule = rules.iter().find(|(ending, _)| word.ends_with(ending));
    match rule {
        Some((ending, other)) if holds(&word[..word.len() - ending.len()]) => {
            replaced(word, ending.len(), other)
        }
        _ => word,
    }
}

fn replaced(mut word: String, ending: usize, other: &str) -> String {
    word.truncate(word.len() - ending);
    word.push_str(other);
    word
}
