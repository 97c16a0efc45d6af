//! Slurm: the policy as calls of `sacctmgr`, and a job as a batch script.

use super::{Export, ExportError, File, gaps_of_job};
use crate::amounts::{Resource, WHOLE};
use crate::job::Spec;
use crate::policy::{Policy, Tree};
use crate::slurm::accounts::{self, OVER};
use crate::slurm::{script, shell};

/// `add` of what is there already fails, and so does a change to what it is already.
const HEAD: &str = r#"#!/bin/bash
# The policy's accounts and qualities of service; written by luthier.
# Run it as an operator of Slurm, as often as wanted.
set -u
call() {
    local said
    said=$(sacctmgr --immediate --quiet "$@" 2>&1) && return
    case $said in
    *'Nothing new added'* | *'Nothing modified'* | *'already exists'*) ;;
    *)
        printf 'sacctmgr %s: %s\n' "$*" "$said" >&2
        exit 1
        ;;
    esac
}

"#;

pub(super) fn export(policy: &Policy, tree: &Tree, job: Option<&Spec>) -> Result<Export, ExportError> {
    let names = accounts::names(tree)?;
    let mut text = HEAD.to_owned();
    for command in accounts::commands(policy, tree, &names, tree.divided.contains(&Resource::Devices)) {
        let words: Vec<String> = command.iter().map(|word| shell::quote(word)).collect();
        text.push_str(&format!("call {}\n", words.join(" ")));
    }
    let mut files = vec![File { name: "policy.sh".into(), text }];
    let mut gaps = names.changed();
    gaps.extend(accounts::gaps(policy, tree));
    gaps.push(
        "slurm.conf has to say PreemptType=preempt/qos, PreemptMode=REQUEUE, JobRequeue=1, \
         SlurmctldParameters=preempt_send_user_signal and \
         AccountingStorageEnforce=associations,limits,qos,safe"
            .into(),
    );
    if let Some(spec) = job {
        let qos = if spec.class.is_preemptible() { OVER.to_owned() } else { super::label(&spec.project) };
        if spec.class.is_preemptible() {
            gaps.push(format!(
                "the script asks for QOS `{OVER}`: while the quota has room, say sbatch --qos={} (`luthier \
                 jobs submit --pool slurm` looks)",
                super::label(&spec.project)
            ));
        }
        gaps.extend(gaps_of_job(spec));
        gaps.extend(part_of_device(spec));
        let text = script::script(&[spec], &qos, policy.grace);
        files.push(File { name: "job.sbatch".into(), text });
    }
    Ok(Export { files, gaps })
}

fn part_of_device(spec: &Spec) -> Option<String> {
    let part = spec.devices.min > 0 && spec.devices.min < WHOLE;
    part.then(|| "the job gets a whole device: a quota in gres/gpu counts no parts".to_owned())
}
