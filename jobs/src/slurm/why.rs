//! Why a job of Slurm is where it is, in the words of our own pool's answer.

use super::answers::{Job, State};
use super::{Slurm, SlurmError, accounts, sum};
use crate::amounts::{Amounts, Bounds, Resource};
use crate::why::{Bound, Why};

impl Slurm {
    /// Why a job is where it is; of an array, the first task that waits.
    ///
    /// # Errors
    /// As [`Slurm::show`].
    pub fn why(&self, id: &str) -> Result<Why, SlurmError> {
        let mut jobs = self.show(id)?;
        let waits = |job: &Job| matches!(job.state, State::Waiting | State::Held);
        let at = jobs.iter().position(waits).unwrap_or(0);
        let job = jobs.swap_remove(at);
        let why = match job.state {
            State::Held => said("held", "somebody holds it back", format!("luthier jobs release {}", job.id)),
            State::Running => said(
                "running",
                format!("it runs on {} ({})", job.nodes, room(&job)),
                "nothing: it goes on until it is done or others need its place",
            ),
            State::Stopping => said("stopping", "it was told to make room, and saves", "its end"),
            State::Done => said("ended", "its work is done", "nothing"),
            State::Cancelled => said("ended", "somebody cancelled it", "submit it again"),
            State::Failed => said(
                "ended",
                format!(
                    "it failed: Slurm says {}{}",
                    job.slurm_state,
                    job.exit.map(|code| format!(", exit code {code}")).unwrap_or_default()
                ),
                format!("see {}, then submit it again", job.log.display()),
            ),
            State::Waiting | State::Unknown => self.why_waiting(&job)?,
        };
        Ok(Why { expected: job.expected, ..why })
    }

    fn why_waiting(&self, job: &Job) -> Result<Why, SlurmError> {
        let reason = job.reason.as_str();
        if reason.starts_with("QOSGrp") {
            return self.why_quota(job);
        }
        if reason.starts_with("AssocGrp") {
            return self.why_limit(job);
        }
        Ok(match reason {
            "Resources" => said(
                "no-room",
                format!("it asks for {}, and not all of that is free at once", job.requested),
                "the end of running jobs, or room that its quota takes back",
            ),
            "Priority" => said(
                "not-its-turn",
                format!(
                    "it asks for {}, and jobs of more priority wait for the same machines",
                    job.requested
                ),
                "the start of those",
            ),
            "BeginTime" if job.restarts > 0 => said(
                "paused",
                format!(
                    "it was put back in the queue ({} times by now); Slurm lets such a job wait two minutes",
                    job.restarts
                ),
                "their end, or a look with `luthier jobs list --pool slurm`",
            ),
            "BeginTime" => said("paused", "its time of start has not come", "that time"),
            "Dependency" => said("paused", "it waits for another job's end", "that end"),
            "None" | "" => {
                said("not-its-turn", "Slurm has not looked at it yet", "Slurm's next round, in seconds")
            }
            "ReqNodeNotAvail" | "PartitionDown" | "PartitionInactive" | "NodeDown" => said(
                "no-room",
                format!("machines that it needs are down or taken out ({reason})"),
                "their return: see sinfo -R",
            ),
            "PartitionConfig" | "BadConstraints" | "PartitionNodeLimit" => said(
                "no-room",
                format!(
                    "no machine of the cluster can ever have what it asks for, {} ({reason})",
                    job.requested
                ),
                "cancel it, and ask for less",
            ),
            other => said(
                "other",
                format!("Slurm says {}", super::one_line(other)),
                "what Slurm's manual says of that: man squeue, JOB REASON CODES",
            ),
        })
    }

    /// Its QOS has no more of its own.
    fn why_quota(&self, job: &Job) -> Result<Why, SlurmError> {
        let quotas = self.quotas()?;
        let quota = quotas.get(&job.qos).copied().unwrap_or_default();
        let Some(resource) = passed(&quota.bounds, &quota.used, job) else {
            return Ok(said(
                "quota",
                format!("the quota of `{}` is taken ({})", job.project, job.reason),
                "the end of a job of that project",
            ));
        };
        let bound = quota.bounds.of(resource).unwrap_or(0);
        let used = quota.used[resource];
        let mut why = said(
            "quota",
            format!(
                "the quota of `{}` is {}, of which {} are in use; this job asks for {}",
                job.project,
                resource.say(bound),
                resource.say(used),
                resource.say(job.requested[resource])
            ),
            match job.requested[resource] > bound {
                true => "nothing: cancel it, and ask for less".to_owned(),
                false => format!(
                    "{} of jobs in the quota to end",
                    resource.say(used.saturating_add(job.requested[resource]) - bound)
                ),
            },
        );
        why.bound = Some(Bound {
            queue: job.project.clone(),
            resource,
            requested: job.requested[resource],
            allocated: used,
            quota: Some(bound),
            limit: None,
        });
        Ok(why)
    }

    /// Its account, or one above it, may have no more at once.
    fn why_limit(&self, job: &Job) -> Result<Why, SlurmError> {
        let limits = self.limits()?;
        let jobs = self.queue()?;
        let above =
            |account: &str| limits.get(account).map(|(parent, _)| parent.clone()).filter(|p| !p.is_empty());
        // As many steps as there are accounts: one that is its own ancestor ends nothing.
        let path = |account: &str| {
            std::iter::successors(Some(account.to_owned()), |account| above(account)).take(limits.len() + 1)
        };
        for account in path(&job.project) {
            let Some((_, bounds)) = limits.get(&account) else { continue };
            let mut used = Amounts::NONE;
            let runs = |other: &&Job| matches!(other.state, State::Running | State::Stopping);
            for other in jobs.iter().filter(runs) {
                if path(&other.project).any(|name| name == account) {
                    used = sum(&used, &other.requested, 1);
                }
            }
            let Some(resource) = passed(bounds, &used, job) else { continue };
            let bound = bounds.of(resource).unwrap_or(0);
            let mut why = said(
                "limit",
                format!(
                    "`{account}` may have {} at once and has {}; this job asks for {}",
                    resource.say(bound),
                    resource.say(used[resource]),
                    resource.say(job.requested[resource])
                ),
                match job.requested[resource] > bound {
                    true => "a higher limit, or a job that asks for less".to_owned(),
                    false => format!(
                        "{} of its jobs to end, or a higher limit",
                        resource.say(used[resource].saturating_add(job.requested[resource]) - bound)
                    ),
                },
            );
            why.bound = Some(Bound {
                queue: account,
                resource,
                requested: job.requested[resource],
                allocated: used[resource],
                quota: None,
                limit: Some(bound),
            });
            return Ok(why);
        }
        Ok(said(
            "limit",
            format!("`{}` or an account above it has as much as it may ({})", job.project, job.reason),
            "the end of one of its jobs, or a higher limit",
        ))
    }
}

/// The resource of which a job would pass a bound: that which Slurm names, or the first.
fn passed(bounds: &Bounds, used: &Amounts, job: &Job) -> Option<Resource> {
    let all = sum(used, &job.requested, 1);
    let named = match job.reason.as_str() {
        reason if reason.contains("Cpu") || reason.contains("CPU") => Some(Resource::Cpus),
        reason if reason.contains("Mem") => Some(Resource::Memory),
        reason if reason.contains("GRES") || reason.contains("Gres") => Some(Resource::Devices),
        _ => None,
    };
    let passes = |resource: &Resource| bounds.of(*resource).is_some_and(|bound| all[*resource] > bound);
    named.filter(passes).or_else(|| bounds.passed_by(&all))
}

fn room(job: &Job) -> &'static str {
    if job.qos == accounts::OVER { "on borrowed room" } else { "within its project's quota" }
}

fn said(rule: &str, message: impl Into<String>, unblocks: impl Into<String>) -> Why {
    Why { rule: rule.into(), message: message.into(), unblocks: unblocks.into(), expected: None, bound: None }
}
