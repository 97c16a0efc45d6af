#!/bin/sh
# Guanaco's way from data to verdict with a small model: train, answer held-out questions with the base and with the
# adapter, and have the answers judged.
#
#   recipes/guanaco/small.sh MODEL DATA OUTPUT
#
# MODEL is a folder or a hub id, DATA a file of conversations or instructions of any kind that `luthier data` reads, OUTPUT a
# folder; the same command again goes on where it was broken off. These may be set in the environment:
#
#   LUTHIER     the program (luthier)
#   QUESTIONS   how many questions are judged (40)
#   JUDGE_URL, JUDGE_MODEL, JUDGE_KEY_ENV
#               a judge behind OpenAI's interface, and the variable that holds its key. Without JUDGE_URL a stand-in that
#               compares words judges: SCRIPTED_JUDGE, the program (cargo run --release --example scripted_judge --)

set -eu

if [ $# -ne 3 ]; then
    echo "usage: $0 MODEL DATA OUTPUT" >&2
    exit 2
fi
model=$1 data=$2 out=$3
here=$(dirname "$0")
luthier=${LUTHIER:-luthier}
questions=${QUESTIONS:-40}

# Who judges is known before anything is trained.
root=$here/../..
if [ -z "${JUDGE_URL:-}" ] && [ -z "${SCRIPTED_JUDGE:-}" ]; then
    cargo build --quiet --release --example scripted_judge --manifest-path "$root/Cargo.toml" || {
        echo "error: the stand-in for a judge cannot be built; name another by JUDGE_URL or SCRIPTED_JUDGE" >&2
        exit 1
    }
fi

mkdir -p "$out"

# Every tenth conversation is asked, as many as are wanted; the others are trained on.
if [ ! -s "$out/train.jsonl" ]; then
    "$luthier" data convert --data "$data" --to messages --output "$out/all.jsonl"
    MOST=$questions ASKED=$out/held-out.jsonl OTHERS=$out/train.jsonl awk '
        NR % 10 == 0 && asked < ENVIRON["MOST"] { asked++; print > ENVIRON["ASKED"]; next }
        { print > ENVIRON["OTHERS"] }' < "$out/all.jsonl"
fi
if [ ! -s "$out/held-out.jsonl" ]; then
    echo "error: $data has fewer than ten conversations, of which one in ten is asked" >&2
    exit 2
fi

if [ -s "$out/run/run.yaml" ]; then
    "$luthier" train --resume "$out/run"
else
    "$luthier" train "$here/small.yaml" --model "$model" --data "$out/train.jsonl" --output "$out/run"
fi

answer() { # NAME FLAGS: answers as QLoRA's authors sampled them
    name=$1
    shift
    [ -s "$out/$name.jsonl" ] || "$luthier" generate "$@" --data "$out/held-out.jsonl" --chat-template guanaco \
        --output "$out/$name.jsonl" --temperature 0.7 --top-p 0.9 --seed 0 --max-tokens 128
}
answer base --model "$model" --quantization nf4
answer guanaco --adapter "$out/run"

if [ -z "${JUDGE_URL:-}" ]; then
    rm -f "$out/judge-url" # one before had another address
    if [ -n "${SCRIPTED_JUDGE:-}" ]; then
        $SCRIPTED_JUDGE "$out/held-out.jsonl" > "$out/judge-url" &
    else
        cargo run --quiet --release --example scripted_judge --manifest-path "$root/Cargo.toml" -- \
            "$out/held-out.jsonl" > "$out/judge-url" &
    fi
    judge=$!
    trap 'kill "$judge" 2> /dev/null || true' EXIT
    trap 'exit 130' INT TERM
    while [ ! -s "$out/judge-url" ]; do
        kill -0 "$judge" 2> /dev/null || { echo "error: the judge did not start" >&2; exit 1; }
        sleep 1
    done
    JUDGE_URL=$(cat "$out/judge-url")
    JUDGE_MODEL=scripted
fi

cat > "$out/judge.yaml" <<YAML
questions: "$out/held-out.jsonl"
answers: {base: "$out/base.jsonl", guanaco: "$out/guanaco.jsonl"}
reference: base
judge: {url: "$JUDGE_URL", model: "$JUDGE_MODEL", key_env: ${JUDGE_KEY_ENV:-null}}
output: "$out/judged"
YAML
"$luthier" eval judge "$out/judge.yaml"
