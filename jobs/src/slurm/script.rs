//! The batch script of a job: starts its members, hears when it has to go, lets it save, and puts it back in
//! the queue.

use std::fmt::Write;

use super::shell::quote;
use crate::Millis;
use crate::amounts::WHOLE;
use crate::export::label;
use crate::job::Spec;

/// What every script does once it knows what to run. `$grace` seconds before its time is over, or at the
/// start of the grace time when it has to make room (`preempt_send_user_signal`), Slurm sends USR1 to the
/// script alone. Slurm sends TERM to all processes at once: to pass it on would be a second one, at which a
/// run ends without saving.
const BODY: &str = r#"
# The number of an array is that of its last task, too.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
saves= leaves= heard=
save() {
    heard=1
    [[ $saves$leaves ]] || stop
    saves=1
}
trap save USR1
trap 'heard=1 leaves=1' TERM

start &
child=$!
status=127
while :; do
    heard=
    wait "$child"
    ended=$?
    ((ended == 127)) || status=$ended
    [[ $heard ]] || break
done
trap '' USR1 TERM

# 75: it saved and can go on. A job that Slurm itself is ending, as after a cancellation, is no longer RUNNING there.
if ((status == 75)) && scontrol --oneliner show job "$job" | grep -q ' JobState=RUNNING '; then
    scontrol requeue "$job"
fi
exit "$status"
"#;

/// The script of equal jobs that differ in what they run: an array, or for one a plain job.
///
/// # Panics
/// If there is no job.
pub(crate) fn script(specs: &[&Spec], qos: &str, grace: Millis) -> String {
    let spec = specs[0];
    let seconds = grace.div_ceil(1000).clamp(1, 65_535);
    let mut text = format!(
        "#!/bin/bash\n# {} of project {}; written by luthier.\n",
        label(&spec.name),
        label(&spec.project)
    );
    for option in options(specs, qos, seconds) {
        let _ = writeln!(text, "#SBATCH {option}");
    }
    text.push_str(
        "\n# What each start runs; it goes on where the last one stopped.\ncpus=${SLURM_CPUS_PER_TASK:-1}\n",
    );
    match specs {
        [one] => text.push_str(&task(one, "")),
        _ => {
            text.push_str("case $SLURM_ARRAY_TASK_ID in\n");
            for (number, spec) in specs.iter().enumerate() {
                let _ = writeln!(text, "{number})\n{}    ;;", task(spec, "    "));
            }
            text.push_str("esac\n");
        }
    }
    text.push_str(&starting(spec, seconds));
    text.push_str(BODY);
    text
}

/// The options of `sbatch`.
fn options(specs: &[&Spec], qos: &str, grace: u64) -> Vec<String> {
    let spec = specs[0];
    let given = spec.member(0);
    let devices = given.devices.div_ceil(WHOLE);
    let (members, array) = (spec.members, specs.len() > 1);
    // `%` begins a pattern in names of files.
    let folder = quoted(&spec.launch.folder.display().to_string());
    let log = format!(
        "{}/slurm-{}.out",
        spec.launch.folder.display().to_string().replace('%', "%%"),
        if array { "%A_%a" } else { "%j" }
    );
    let mut options = vec![
        format!("--job-name={}", label(&spec.name)),
        format!("--comment=luthier:{}", class(spec)),
        format!("--account={}", label(&spec.project)),
        format!("--qos={qos}"),
        format!("--ntasks={members}"),
        format!("--cpus-per-task={}", given.cpus),
    ];
    if members == 1 {
        options.push("--nodes=1".into());
    }
    if given.memory > 0 {
        options.push(match members {
            1 => format!("--mem={}M", mebibytes(given.memory)),
            // For a node there is no telling how many members it gets.
            _ => format!("--mem-per-cpu={}M", mebibytes(given.memory.div_ceil(given.cpus.max(1)))),
        });
    }
    if devices > 0 {
        options.push(match members {
            1 => format!("--gres=gpu:{devices}"),
            _ => format!("--gpus-per-task={devices}"),
        });
    }
    if spec.class.priority() != spec.priority {
        // Slurm lets its users be nicer than others, but not less nice.
        options.push(format!("--nice={}", (125 - spec.priority).max(0)));
    }
    if array {
        options.push(format!("--array=0-{}", specs.len() - 1));
    }
    options.extend([
        "--requeue".to_owned(),
        "--open-mode=append".into(),
        format!("--signal=B:USR1@{grace}"),
        format!("--chdir={folder}"),
        format!("--output={}", quoted(&log)),
    ]);
    options
}

/// As `sbatch` reads a value in a script: in double quotes, with `\` before those and itself.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', r"\\").replace('"', "\\\""))
}

fn class(spec: &Spec) -> &'static str {
    match spec.class {
        crate::Class::Train => "train",
        crate::Class::BuildPreemptible => "build-preemptible",
        crate::Class::Build => "build",
        crate::Class::Inference => "inference",
    }
}

fn mebibytes(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20).max(1)
}

/// Where it runs, and its command as a list of words.
fn task(spec: &Spec, indent: &str) -> String {
    let given = spec.member(0);
    let memory = given.memory.to_string();
    let devices = given.devices.div_ceil(WHOLE).to_string();
    let word = |argument: &String| {
        let known = argument.replace("{memory}", &memory).replace("{devices}", &devices);
        let parts: Vec<String> = known
            .split("{cpus}")
            .map(|part| if part.is_empty() { String::new() } else { quote(part) })
            .collect();
        let word = parts.join("\"$cpus\"");
        if word.is_empty() { "''".to_owned() } else { word }
    };
    let words: Vec<String> = spec.launch.arguments.iter().map(word).collect();
    let folder = quote(&spec.launch.folder.display().to_string());
    format!("{indent}cd {folder} || exit 2\n{indent}run=({})\n", words.join(" "))
}

/// How it is started, and told to save.
fn starting(spec: &Spec, grace: u64) -> String {
    match spec.members {
        1 => "start() { exec \"${run[@]}\"; }\nstop() { kill -TERM \"$child\"; }\n".to_owned(),
        // Members save at their own pace: the first to end must not end the others, but none may wait for
        // ever.
        _ => format!(
            "start() {{ exec srun --kill-on-bad-exit=0 --wait={grace} --cpus-per-task=\"$cpus\" \"${{run[@]}}\"; }}\n\
             stop() {{ scancel --signal=TERM \"$job\"; }}\n"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::{quote, quoted};

    #[test]
    fn words_survive_the_shell() {
        assert_eq!(quote("a/b-c"), "a/b-c");
        assert_eq!(quote(""), "''");
        assert_eq!(quote("it's $HOME"), r"'it'\''s $HOME'");
        assert_eq!(quoted(r#"a "b" \c"#), r#""a \"b\" \\c""#);
    }
}
