//! Every route of a pool and every error, over a real socket, with processes that follow a script.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use jobs::Exit;
use jobs::supervisor::Progress;
use serde_json::{Value, json};
use server::{PoolLimits, new_token};
use sha2::{Digest, Sha256};

use crate::openapi::{METHODS, fields, filled, is_of_pool, missing, operations, properties};
use crate::pool::{GIB, Pool, ROOT, job, policy};

const JOBS: &str = "/pool/v1/jobs";

fn document(pool: &Pool) -> Value {
    pool.raw("GET", "/pool/v1/openapi.json", "", b"").json(200)
}

/// The numbers of the jobs of a list.
fn ids(reply: &Value) -> Vec<u64> {
    reply["jobs"].as_array().unwrap().iter().map(|job| job["id"].as_u64().unwrap()).collect()
}

// --- who asks ---

#[test]
fn without_a_token_that_counts_nothing_is_told_apart() {
    let pool = Pool::start();
    let told = |headers: &str| {
        let reply = pool.raw("GET", JOBS, headers, b"");
        assert_eq!(reply.header("www-authenticate"), Some("bearer"), "{headers}");
        reply.error(401, None)
    };
    let nothing = told("");
    let pieces =
        ["", "Bearer", "Bearer ", "Bearer x", "Basic cm9vdA==", "Bearer pool-root2", "Bearer pool-roo"];
    for shown in pieces {
        assert_eq!(told(&format!("Authorization: {shown}\r\n")), nothing, "{shown}");
    }
    // A hash is no token.
    let hash: String = Sha256::digest(ROOT).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(told(&format!("Authorization: Bearer {hash}\r\n")), nothing);
    pool.get("root", JOBS).json(200);
    for (method, path, operation) in operations(&document(&pool)) {
        let status = pool.raw(&method.to_uppercase(), &filled(&path), "", b"{}").status;
        assert_eq!(status == 401, operation["security"] != json!([]), "{method} {path} answers {status}");
    }
}

#[test]
fn a_token_counts_until_it_is_taken_back_or_replaced() {
    let pool = Pool::start();
    let with = |token: &str| {
        pool.raw("GET", "/pool/v1/me", &format!("Authorization: Bearer {token}\r\n"), b"").status
    };
    let old = pool.token("bea").to_owned();
    assert_eq!(with(&old), 200);
    let made = pool.post("eve", "/pool/v1/users", &json!({"name": "bea"})).json(200);
    let new = made["token"].as_str().unwrap();
    assert_eq!((with(&old), with(new), &made["name"]), (401, 200, &json!("bea")));
    assert_eq!(pool.ask("eve", "DELETE", "/pool/v1/users/bea", b"").json(200), json!({"removed": "bea"}));
    assert_eq!(with(new), 401);
    pool.ask("eve", "DELETE", "/pool/v1/users/bea", b"").error(404, Some("name"));
    pool.ask("eve", "DELETE", "/pool/v1/users/nobody", b"").error(404, Some("name"));
    let users = pool.get("root", "/pool/v1/users").json(200)["users"].clone();
    let names: Vec<_> = users.as_array().unwrap().iter().map(|user| user["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["ada", "bea", "cai", "dot", "eve"]);
    assert!(users[1]["revoked"].is_u64() && users[0]["revoked"].is_null() && users[0]["created"].is_u64());
    assert!(!users.to_string().contains("pool-") && !users.to_string().contains("hash"));
    for name in ["", "a b", "../x", "root", &"x".repeat(64)] {
        pool.post("root", "/pool/v1/users", &json!({"name": name})).error(400, Some("name"));
    }
    let token = new_token().unwrap();
    assert!(token.starts_with("pool-") && token.len() > 40 && new_token().unwrap() != token);
}

#[test]
fn what_is_the_admins_is_refused_to_others() {
    let pool = Pool::start();
    for user in ["ada", "cai", "dot"] {
        for (method, path, body) in [
            ("GET", "/pool/v1/audit", json!(null)),
            ("GET", "/pool/v1/users", json!(null)),
            ("POST", "/pool/v1/users", json!({"name": "me"})),
            ("DELETE", "/pool/v1/users/ada", json!(null)),
            ("PUT", "/pool/v1/policy", policy()),
        ] {
            let told = pool.ask(user, method, path, body.to_string().as_bytes()).error(403, None);
            assert!(told.contains("only admins may"), "{told}");
        }
    }
    let deeds = pool.get("eve", "/pool/v1/audit?limit=1").json(200);
    assert_eq!(deeds["audit"][0]["deed"], "set the token of eve");
    assert_eq!(deeds["audit"].as_array().unwrap().len(), 1);
    let me = |user: &str| pool.get(user, "/pool/v1/me").json(200);
    assert_eq!(
        me("ada"),
        json!({"name": "ada", "admin": false, "any_command": false, "projects": ["red"], "owns": ["red"]})
    );
    assert_eq!((&me("bea")["projects"], &me("bea")["owns"]), (&json!(["red"]), &json!([])));
    assert_eq!((&me("dot")["projects"], &me("eve")["admin"]), (&json!([]), &json!(true)));
    assert_eq!((&me("root")["owns"], &me("root")["name"]), (&json!(["red", "blue"]), &json!("root")));
}

// --- submitting ---

#[test]
fn a_job_is_submitted_in_ones_own_name_runs_and_ends() {
    let pool = Pool::start();
    let mut forged = job("first", "red", 1);
    forged["user"] = json!("root");
    let id = pool.submit("bea", &forged);
    let running = pool.wait(id, "running");
    for (name, value) in [
        ("user", json!("bea")),
        ("class", json!("train")),
        ("attempts", json!(1)),
        ("group", json!(null)),
        ("ended", json!(null)),
        ("exit", json!(null)),
    ] {
        assert_eq!(running[name], value, "{name}");
    }
    let devices = json!({"min": 1000, "max": 1000});
    assert_eq!(running["request"]["devices"], devices);
    assert_eq!(running["placement"][0]["node"], "gpu");
    assert_eq!(running["history"][0]["placement"], running["placement"]);
    assert_eq!(running["spec"]["launch"]["arguments"][0], "luthier");
    pool.exit(id, Exit::Done);
    let done = pool.wait(id, "done");
    assert_eq!((&done["exit"], &done["placement"]), (&json!("done"), &json!(null)));
    assert!(done["started"].as_u64() >= done["submitted"].as_u64() && done["ended"].is_u64());
    let why = pool.get("bea", &format!("{JOBS}/{id}/why")).json(200);
    assert_eq!((&why["rule"], &why["message"]), (&json!("ended"), &json!("its work is done")));
    // It is gone from the list, unless all are asked for.
    assert_eq!(ids(&pool.get("bea", JOBS).json(200)), [0; 0]);
    assert_eq!(ids(&pool.get("bea", &format!("{JOBS}?all=true")).json(200)), [id]);
    pool.exit(pool.submit("bea", &job("second", "red", 1)), Exit::Done);
}

#[test]
fn jobs_are_listed_by_project_user_and_group() {
    let pool = Pool::start();
    let several = json!({"jobs": [job("a", "red", 1), job("b", "red", 1)], "group": "sweep"});
    let group = pool.post("ada", JOBS, &several).json(200)["ids"].clone();
    let third = pool.submit("bea", &job("c", "red", 1));
    let fourth = pool.submit("cai", &job("d", "blue", 1));
    let (first, second) = (group[0].as_u64().unwrap(), group[1].as_u64().unwrap());
    let list = |user: &str, query: &str| ids(&pool.get(user, &format!("{JOBS}{query}")).json(200));
    assert_eq!(list("eve", ""), [fourth, third, second, first]);
    assert_eq!(list("ada", ""), [third, second, first]);
    assert_eq!(list("bea", "?user=ada"), [second, first]);
    assert_eq!(list("bea", "?group=sweep&limit=1"), [second]);
    assert_eq!(list("eve", "?project=blue"), [fourth]);
    // The project of others is as one that is not there.
    assert_eq!((list("cai", "?project=red"), list("cai", "?project=none")), (vec![], vec![]));
    assert_eq!((list("cai", ""), list("dot", "")), (vec![fourth], vec![]));
    for (query, param) in [
        ("?limit=0", "limit"),
        ("?limit=1001", "limit"),
        ("?limit=x", "limit"),
        ("?all=yes", "all"),
        ("?projet=red", "projet"),
        ("?user=a&user=b", "user"),
    ] {
        pool.get("ada", &format!("{JOBS}{query}")).error(400, Some(param));
    }
}

#[test]
fn what_may_not_be_submitted_is_refused_whole() {
    let pool = Pool::start();
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut job = job("x", "red", 1);
        change(&mut job);
        json!({"jobs": [self::job("good", "red", 1), job]})
    };
    let wrong: [(Value, u16, Option<&str>); 15] = [
        (changed(&|job| job["launch"]["arguments"] = json!(["sh", "-c", "id"])), 403, None),
        (changed(&|job| job["launch"]["arguments"] = json!(["/bin/luthier"])), 403, None),
        (changed(&|job| job["launch"]["arguments"] = json!([])), 400, Some("jobs[1].launch.arguments")),
        (changed(&|job| job["launch"]["folder"] = json!("work")), 400, Some("jobs[1].launch.folder")),
        (changed(&|job| job["launch"]["output"] = json!("run")), 400, Some("jobs[1].launch.output")),
        (changed(&|job| job["name"] = json!("")), 400, Some("jobs[1].name")),
        (changed(&|job| job["name"] = json!("x".repeat(201))), 400, Some("jobs[1].name")),
        (changed(&|job| job["members"] = json!(-1)), 400, Some("jobs[1].members")),
        (changed(&|job| job["devices"]["min"] = json!("two")), 400, Some("jobs[1].devices.min")),
        (changed(&|job| job["class"] = json!("boss")), 400, Some("jobs[1].class")),
        (changed(&|job| job["memory"] = json!(1_u64 << 60)), 400, Some("memory")),
        (changed(&|job| job["devices"] = json!({"min": 9000, "max": 9000})), 400, None),
        (changed(&|job| job["project"] = json!("blue")), 403, None),
        (changed(&|job| job["project"] = json!("none")), 403, None),
        (changed(&|job| job["priority"] = json!(90)), 403, None),
    ];
    for (body, status, param) in &wrong {
        let told = pool.post("bea", JOBS, body).error(*status, *param);
        assert!(*status != 403 || !told.is_empty());
    }
    let told = pool.post("bea", JOBS, &wrong[0].0).error(403, None);
    assert!(told.contains("--any-command") && told.contains("luthier's own"), "{told}");
    // Who does not belong to a project does not learn whether it is there.
    let of =
        |project: &str| pool.post("dot", JOBS, &json!({"jobs": [job("x", project, 1)]})).error(403, None);
    assert_eq!(of("red").replace("red", "none"), of("none"));
    for (body, param) in [
        (json!({}), Some("jobs")),
        (json!({"jobs": []}), Some("jobs")),
        (json!({"jobs": {}}), Some("jobs")),
        (json!({"jobs": [null]}), Some("jobs[0]")),
        (json!({"jobs": ["x"]}), Some("jobs[0]")),
        (json!({"jobs": vec![job("x", "red", 1); 1001]}), Some("jobs")),
        (json!({"jobs": [job("x", "red", 1)], "group": ""}), Some("group")),
        (json!({"jobs": [job("x", "red", 1)], "groop": "a"}), Some("groop")),
    ] {
        pool.post("ada", JOBS, &body).error(400, param);
    }
    assert_eq!(ids(&pool.get("root", &format!("{JOBS}?all=true")).json(200)), [0; 0]);
    // Where any command may run, it may.
    let open = Pool::with(PoolLimits::default(), true);
    let mut shell = job("x", "red", 1);
    shell["launch"]["arguments"] = json!(["sh"]);
    open.wait(open.submit("bea", &shell), "running");
}

#[test]
fn garbage_is_answered_and_nothing_comes_of_it() {
    let pool = Pool::start();
    let deep = "[".repeat(100_000);
    let garbage: [&[u8]; 8] =
        [b"", b"\0\xff", b"{", b"[]", b"null", b"{\"jobs\":", deep.as_bytes(), b"{\"jobs\":\"\xf0\"}"];
    for body in garbage {
        for (method, path) in [
            ("POST", JOBS),
            ("PUT", "/pool/v1/policy"),
            ("POST", "/pool/v1/users"),
            ("PUT", "/pool/v1/speed"),
        ] {
            let reply = pool.ask("root", method, path, body);
            assert_eq!(reply.status, 400, "{method} {path} {}", reply.body);
        }
    }
    let small = PoolLimits { body_bytes: 1000, ..PoolLimits::default() };
    let small = Pool::with(small, false);
    assert!(small.ask("root", "POST", JOBS, &[b' '; 1001]).error(413, None).contains("1000 bytes"));
    pool.get("root", "/pool/v1/nothing").error(404, None);
    pool.ask("root", "PATCH", JOBS, b"").error(405, None);
    assert_eq!(pool.get("root", "/pool/v1/status").json(200)["queues"][0]["waiting"], 0);
}

// --- what is done with jobs ---

#[test]
fn owners_decide_about_jobs_of_their_project_and_members_about_their_own() {
    let pool = Pool::start();
    let of_ada = pool.submit("ada", &job("a", "red", 1));
    let of_bea = pool.submit("bea", &job("b", "red", 1));
    let act = |user: &str, id: u64, what: &str| pool.post(user, &format!("{JOBS}/{id}/{what}"), &json!({}));
    let priority = |user: &str, id: u64, priority: i64| {
        pool.post(user, &format!("{JOBS}/{id}/priority"), &json!({"priority": priority}))
    };
    for what in ["cancel", "hold", "release"] {
        assert!(act("bea", of_ada, what).error(403, None).contains("only an owner of `red`"));
        let strange = act("cai", of_ada, what).error(404, Some("id"));
        assert_eq!(strange.replace(&of_ada.to_string(), "999"), act("cai", 999, what).error(404, Some("id")));
    }
    for id in ["x", "-1", "18446744073709551615", "99999999999999999999", "1.5"] {
        pool.get("root", &format!("{JOBS}/{id}")).error(404, Some("id"));
        pool.post("root", &format!("{JOBS}/{id}/cancel"), &json!({})).error(404, Some("id"));
    }
    pool.wait(of_bea, "running");
    let may = |user: &str, id: u64| pool.get(user, &format!("{JOBS}/{id}")).json(200)["may"].clone();
    assert_eq!(may("bea", of_ada), json!({"change": false, "raise": false}));
    assert_eq!(may("bea", of_bea), json!({"change": true, "raise": false}));
    assert_eq!(may("ada", of_bea), json!({"change": true, "raise": true}));
    act("bea", of_bea, "hold").json(200);
    pool.wait(of_bea, "held");
    act("bea", of_bea, "release").json(200);
    assert_eq!(pool.wait(of_bea, "running")["attempts"], 2);
    assert!(act("ada", of_bea, "release").error(409, None).contains("is not held"));
    assert_eq!(priority("bea", of_bea, 10).json(200)["priority"], 10);
    priority("bea", of_bea, 60).error(403, None);
    assert_eq!(priority("ada", of_bea, 60).json(200)["priority"], 60);
    pool.post("ada", &format!("{JOBS}/{of_bea}/priority"), &json!({})).error(400, Some("priority"));
    priority("ada", of_bea, 1 << 40).error(400, Some("priority"));
    act("ada", of_bea, "cancel").json(200);
    let ended = pool.wait(of_bea, "cancelled");
    assert_eq!(ended["history"].as_array().unwrap().len(), 2);
    assert_eq!(ended["history"][0]["reason"], "somebody holds it back");
    assert_eq!(ended["history"][1]["reason"], "somebody cancelled it");
    assert!(act("ada", of_bea, "cancel").error(409, None).contains("has ended"));
    let deeds = pool.get("root", "/pool/v1/audit").json(200).to_string();
    for deed in ["hold job", "release job", "cancel job", "prioritize job", "submit job"] {
        assert!(deeds.contains(deed), "{deed}: {deeds}");
    }
}

#[test]
fn a_job_that_waits_is_told_why_with_its_numbers() {
    let pool = Pool::start();
    let big = pool.submit("ada", &job("big", "red", 4));
    pool.wait(big, "running");
    pool.script.lock().unwrap().is_deaf = true;
    // Its share is two, of which the other has none: somebody has to leave.
    let small = pool.submit("cai", &job("small", "blue", 2));
    pool.wait(small, "promised");
    let why = pool.get("cai", &format!("{JOBS}/{small}/why")).json(200);
    assert_eq!(why["rule"], "promised");
    let told = why["message"].as_str().unwrap();
    assert!(told.contains("it starts on gpu") && told.contains(&format!("job {big}")), "{told}");
    let mut guaranteed = job("inference", "red", 3);
    guaranteed["class"] = json!("inference");
    guaranteed["priority"] = json!(125);
    let refused = pool.post("ada", JOBS, &json!({"jobs": [guaranteed]})).error(400, None);
    assert!(refused.contains("the quota of `red` is 2 devices"), "{refused}");
    pool.get("bea", &format!("{JOBS}/{small}/why")).error(404, Some("id"));
}

#[test]
fn an_eviction_is_told_with_its_reason_and_what_was_lost_to_those_it_concerns() {
    let pool = Pool::start();
    let progress = Progress { done: 57, saved: 50, total: Some(100) };
    pool.script.lock().unwrap().progress.insert("secret".into(), progress);
    let victim = pool.submit("ada", &job("secret", "red", 4));
    pool.wait(victim, "running");
    let winner = pool.submit("cai", &job("small", "blue", 2));
    pool.wait(winner, "running");
    let of = |user: &str| pool.get(user, "/pool/v1/evictions").json(200)["evictions"].clone();
    let eviction = of("ada")[0].clone();
    for (name, value) in [
        ("job", json!(victim)),
        ("name", json!("secret")),
        ("project", json!("red")),
        ("by", json!(winner)),
        ("by_project", json!("blue")),
        ("lost_steps", json!(7)),
        ("reason", json!(format!("job {winner} takes back what its project is guaranteed"))),
    ] {
        assert_eq!(eviction[name], value, "{name}");
    }
    // Whoever won sees it without the other's name, and others do not see it.
    assert_eq!((&of("cai")[0]["job"], &of("cai")[0]["name"]), (&json!(victim), &json!(null)));
    assert_eq!((of("dot"), of("eve")), (json!([]), json!([eviction])));
    let told = pool.get("bea", &format!("{JOBS}/{victim}")).json(200);
    assert_eq!((&told["evictions"], &told["lost_steps"]), (&json!(1), &json!(7)));
    assert_eq!((&told["history"][0]["by"], &told["history"][0]["exit"]), (&json!(winner), &json!("saved")));
    pool.get("ada", "/pool/v1/evictions?limit=0").error(400, Some("limit"));
}

// --- how the pool stands ---

#[test]
fn the_status_tells_what_projects_have_and_who_lends_it_but_no_names() {
    let pool = Pool::start();
    let id = pool.submit("ada", &job("secret-name", "red", 3));
    pool.wait(id, "running");
    let reply = pool.get("dot", "/pool/v1/status");
    assert!(!reply.body.contains("secret-name") && !reply.body.contains("bea"));
    let status = reply.json(200);
    assert_eq!(status["capacity"], json!({"devices": 4000, "cpus": 16, "memory": 128 * GIB}));
    let (gpu, cpu) = (&status["nodes"][0], &status["nodes"][1]);
    assert_eq!((&gpu["name"], &gpu["jobs"], &cpu["jobs"]), (&json!("gpu"), &json!([id]), &json!([])));
    assert_eq!(gpu["free"], json!({"devices": 1000, "cpus": 7, "memory": 63 * GIB}));
    let place = &gpu["places"][0];
    assert_eq!(
        (&place["job"], &place["project"], &place["devices"], &place["part"], &place["stopping"]),
        (&json!(id), &json!("red"), &json!([0, 1, 2]), &json!(1000), &json!(false))
    );
    let [lab, red, blue] = [0, 1, 2].map(|n| status["queues"][n].clone());
    assert_eq!(
        (&lab["kind"], &lab["department"], &lab["name"]),
        (&json!("department"), &json!(null), &json!("lab"))
    );
    assert_eq!((&red["kind"], &red["department"]), (&json!("project"), &json!("lab")));
    assert_eq!(red["quota"], json!({"devices": 2000, "cpus": 8, "memory": null}));
    assert_eq!(red["limit"], json!({"devices": null, "cpus": null, "memory": null}));
    assert_eq!(red["held"], json!({"devices": 3000, "cpus": 1, "memory": GIB}));
    assert_eq!(red["over_quota"], json!({"devices": 1000, "cpus": 0, "memory": 0}));
    assert_eq!((red["share"]["devices"].as_f64(), red["share"]["cpus"].as_f64()), (Some(3.0), Some(1.0)));
    assert_eq!((&red["running"], &red["waiting"], &blue["running"]), (&json!(1), &json!(0), &json!(0)));
    assert!(
        red["hours"]["devices"].is_f64() && red["usage"]["cpus"].is_f64() && red["over_quota_weight"] == 1.0
    );
    let loan = json!({"from": "blue", "to": "red", "resource": "devices", "amount": 1000});
    assert_eq!(status["lending"], json!([loan]));
    // Hours go on though nothing happens.
    let hours = |status: &Value| status["queues"][1]["hours"]["devices"].as_f64().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let later = pool.get("dot", "/pool/v1/status").json(200);
    assert!(hours(&later) > hours(&status) && later["at"].as_u64() > status["at"].as_u64());
    // What comes next is seen at once.
    pool.submit("cai", &job("other", "blue", 1));
    assert_eq!(pool.get("cai", "/pool/v1/status").json(200)["queues"][2]["running"], 1);
    pool.get("cai", "/pool/v1/status?x=1").error(400, Some("x"));
}

#[test]
fn samples_are_there_from_a_time_on() {
    let pool = Pool::start();
    let begun = Instant::now();
    let samples = loop {
        let samples = pool.get("dot", "/pool/v1/samples").json(200)["samples"].clone();
        if samples != json!([]) {
            break samples;
        }
        assert!(begun.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(samples[0]["queues"][1]["name"], "red");
    assert_eq!(samples[0]["queues"][1]["held"]["devices"], 0);
    assert!(samples[0]["queues"][1]["share"]["devices"].is_number());
    let later = samples[0]["at"].as_u64().unwrap() + 3_600_000;
    assert_eq!(pool.get("dot", &format!("/pool/v1/samples?since={later}")).json(200), json!({"samples": []}));
    pool.get("dot", "/pool/v1/samples?since=yesterday").error(400, Some("since"));
}

// --- the rules ---

#[test]
fn a_policy_is_told_and_changed_and_a_wrong_one_names_its_field() {
    let pool = Pool::start();
    let told = pool.get("cai", "/pool/v1/policy").json(200);
    // Others' people are nobody's business.
    assert_eq!(
        (&told["projects"][0]["owners"], &told["projects"][1]["members"]),
        (&json!([]), &json!(["cai"]))
    );
    let whole = pool.get("eve", "/pool/v1/policy").json(200);
    assert_eq!(whole["projects"][0]["owners"], json!(["ada"]));
    assert_eq!(pool.put("eve", "/pool/v1/policy", &whole).json(200), json!({"applied": true}));
    assert_eq!(pool.get("eve", "/pool/v1/policy").json(200), whole);
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut policy = policy();
        change(&mut policy);
        policy
    };
    let department = |name: &str, above: &str| json!({"name": name, "department": above});
    for (wrong, param) in [
        (
            changed(&|p| p["projects"][0]["quota"]["devices"] = json!({"amount": -5})),
            "projects[0].quota.devices.amount",
        ),
        (changed(&|p| p["projects"][0]["quota"]["devices"] = json!(5)), "projects[0].quota.devices"),
        (changed(&|p| p["projects"][1]["quotta"] = json!({})), "projects[1].quotta"),
        (changed(&|p| p["projects"][1]["name"] = json!("red")), "projects[1].name"),
        (changed(&|p| p["projects"][1]["name"] = json!("a/b")), "projects[1].name"),
        (changed(&|p| p["projects"][1]["department"] = json!("none")), "projects[1].department"),
        (changed(&|p| p["departments"][0]["department"] = json!("lab")), "departments[0].department"),
        (
            changed(&|p| {
                p["departments"] =
                    json!([department("lab", "b"), department("b", "c"), department("c", "lab")])
            }),
            "departments[0].department",
        ),
        (
            changed(&|p| p["projects"][0]["quota"]["devices"] = json!({"amount": 3000})),
            "departments[0].quota.devices",
        ),
        (
            changed(&|p| p["projects"][0]["quota"]["cpus"] = json!({"amount": 1_u64 << 60})),
            "projects[0].quota.cpus",
        ),
        (changed(&|p| p["projects"][0]["over_quota_weight"] = json!(-1)), "projects[0].over_quota_weight"),
        (changed(&|p| p["usage"] = json!({"half_life": 0})), "usage.half_life"),
        (changed(&|p| p["grace"] = json!("long")), "grace"),
    ] {
        let message = pool.put("root", "/pool/v1/policy", &wrong).error(400, Some(param));
        assert!(!message.is_empty());
    }
    assert_eq!(pool.get("eve", "/pool/v1/policy").json(200), whole, "nothing of a wrong one holds");
    pool.submit("ada", &job("x", "red", 1));
    let without = changed(&|p| drop(p["projects"].as_array_mut().unwrap().remove(0)));
    assert!(pool.put("eve", "/pool/v1/policy", &without).error(409, None).contains("has 1 jobs"));
    // Who was an admin by the policy alone is none any more.
    pool.put("eve", "/pool/v1/policy", &changed(&|p| p["admins"] = json!([]))).json(200);
    pool.put("eve", "/pool/v1/policy", &policy()).error(403, None);
    pool.put("root", "/pool/v1/policy", &policy()).json(200);
}

#[test]
fn speeds_are_remembered_for_members() {
    let pool = Pool::start();
    let ask = |what: &str| pool.get("dot", &format!("/pool/v1/speed?what={what}"));
    assert_eq!(ask("a%20b").json(200), json!({"rate": null}));
    let learn =
        |user: &str, rate: Value| pool.put(user, "/pool/v1/speed", &json!({"what": "a b", "rate": rate}));
    assert_eq!(learn("bea", json!(12.5)).json(200), json!({"what": "a b", "rate": 12.5}));
    assert_eq!(ask("a%20b").json(200), json!({"rate": 12.5}));
    learn("dot", json!(1)).error(403, None);
    for wrong in [json!(0), json!(-1), json!("fast"), json!(null)] {
        learn("bea", wrong).error(400, Some("rate"));
    }
    pool.put("bea", "/pool/v1/speed", &json!({"what": "x".repeat(501), "rate": 1})).error(400, Some("what"));
    ask(&"x".repeat(501)).error(400, Some("what"));
    pool.get("dot", "/pool/v1/speed").error(400, Some("what"));
}

// --- files of jobs ---

#[test]
fn a_log_comes_piece_by_piece_and_says_when_it_is_over() {
    let pool = Pool::start();
    let id = pool.submit("ada", &job("x", "red", 1));
    pool.wait(id, "running");
    let piece = |offset: i64| pool.get("bea", &format!("{JOBS}/{id}/log?offset={offset}")).json(200);
    assert_eq!(piece(0), json!({"text": "", "offset": 0, "ended": false}));
    // A letter of three bytes lies across the end of the first piece, and some bytes are no text.
    let mut log = vec![b'a'; (256 << 10) - 1];
    log.extend("€<script>".as_bytes());
    log.extend(b"\xff\xfe end\n");
    pool.say(id, &log);
    let first = piece(0);
    assert_eq!(
        (first["text"].as_str().unwrap().len(), &first["offset"]),
        ((256 << 10) - 1, &json!((256 << 10) - 1))
    );
    let second = piece(first["offset"].as_i64().unwrap());
    assert_eq!(second["text"], "€<script>\u{fffd}\u{fffd} end\n");
    assert_eq!((&second["offset"], &second["ended"]), (&json!(log.len()), &json!(false)));
    assert_eq!(piece(-5)["text"], " end\n".to_owned());
    assert_eq!(piece(1 << 40)["offset"], json!(log.len()));
    pool.exit(id, Exit::Done);
    pool.wait(id, "done");
    assert_eq!((&piece(0)["ended"], &piece(i64::MAX)["ended"]), (&json!(false), &json!(true)));
    pool.get("bea", &format!("{JOBS}/{id}/log?offset=x")).error(400, Some("offset"));
    pool.get("cai", &format!("{JOBS}/{id}/log")).error(404, Some("id"));
}

#[test]
fn a_curve_is_thinned() {
    let pool = Pool::start();
    let run = pool.run_folder("run", 5000);
    let mut of = job("x", "red", 1);
    of["launch"]["output"] = json!(run);
    let id = pool.submit("ada", &of);
    let lines = pool.get("bea", &format!("{JOBS}/{id}/metrics")).json(200);
    let lines = lines.as_array().unwrap();
    assert!((500..=1000).contains(&lines.len()), "{}", lines.len());
    assert!(lines.iter().any(|line| line["step"] == 5000 && line["loss"].is_number()));
    assert!(lines.iter().any(|line| line["step"] == 5000 && line["eval_loss"].is_number()));
    // Without a file, or without a run folder, there is none.
    for output in [json!(null), json!("/none")] {
        of["launch"]["output"] = output;
        let id = pool.submit("ada", &of);
        assert_eq!(pool.get("ada", &format!("{JOBS}/{id}/metrics")).json(200), json!([]));
    }
    pool.get("cai", &format!("{JOBS}/{id}/metrics")).error(404, Some("id"));
}

// --- too much ---

#[test]
fn a_burst_of_ten_thousand_jobs_is_bounded_and_none_that_was_taken_is_lost() {
    let limits = PoolLimits { jobs_per_minute: 500, requests_per_minute: 20_000, ..PoolLimits::default() };
    let pool = Pool::with(limits, false);
    let one = json!({"jobs": [job("x", "red", 1)]});
    let taken: Vec<u64> = std::thread::scope(|scope| {
        let send = || {
            let mut taken = Vec::new();
            for _ in 0..100 {
                let reply = pool.post("bea", JOBS, &json!({"jobs": vec![one["jobs"][0].clone(); 10]}));
                match reply.status {
                    200 => taken.extend(
                        reply.json(200)["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()),
                    ),
                    _ => {
                        reply.error(429, None);
                        assert!(reply.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
                    }
                }
            }
            taken
        };
        let threads: Vec<_> = (0..10).map(|_| scope.spawn(send)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    // What a minute gives, and what came back meanwhile.
    assert!((500..5000).contains(&taken.len()), "{} of 10000 were taken", taken.len());
    let there: BTreeSet<u64> = taken.iter().copied().collect();
    assert_eq!(there.len(), taken.len(), "each has a number of its own");
    let status = pool.get("bea", "/pool/v1/status").json(200);
    let red = &status["queues"][1];
    let count = red["running"].as_u64().unwrap() + red["waiting"].as_u64().unwrap();
    assert_eq!(count as usize, taken.len());
    for id in taken.iter().step_by(97) {
        pool.job(*id);
    }
    // Others are not held up by it.
    pool.submit("ada", &job("y", "red", 1));
}

#[test]
fn who_asks_too_much_waits_and_others_do_not() {
    let limits = PoolLimits { requests_per_minute: 40, ..PoolLimits::default() };
    let pool = Pool::with(limits, false);
    let mut seen = (0..60).map(|_| pool.get("cai", "/pool/v1/me").status);
    assert!(seen.by_ref().take(40).all(|status| status == 200) && seen.any(|status| status == 429));
    pool.get("bea", "/pool/v1/me").json(200);
}

// --- the document ---

#[test]
fn the_document_says_which_methods_there_are_and_what_is_read() {
    let pool = Pool::start();
    let document = document(&pool);
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in METHODS {
            let reply = pool.ask("root", &method.to_uppercase(), &filled(path), b"{}");
            let is_there = methods.get(method).is_some();
            assert_eq!(reply.status != 405, is_there, "{method} {path}: {}", reply.body);
        }
    }
    for (method, path, operation) in operations(&document) {
        let of = format!("{method} {path}");
        assert!(operation["summary"].is_string() && operation["tags"][0].is_string(), "{of}");
        let is_public = operation["security"] == json!([]);
        assert!(is_public || operation["responses"].get("401").is_some(), "{of}");
    }
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert!(document.pointer(reference).is_some(), "{reference}");
    }
    let read = fields(is_of_pool);
    assert!(read.len() > 5, "{read:?}");
    let parameters = document["paths"].to_string();
    let missing: Vec<_> = missing(&read, &text)
        .into_iter()
        .filter(|(name, _)| !parameters.contains(&format!("\"name\":\"{name}\"")))
        .collect();
    assert!(missing.is_empty(), "fields without a word in server/src/pool/openapi.json: {missing:?}");
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(pool.raw("GET", "/openapi.json", "", b"").json(200), document);
}

/// Fails where an answer has a field that its schema does not name.
fn hold(document: &Value, schema: &Value, answer: &Value, of: &str) {
    if let Some(list) = answer.as_array() {
        let items = resolved(document, schema)["items"].clone();
        return list.iter().for_each(|one| hold(document, &items, one, of));
    }
    let known = properties(document, schema);
    let Some(fields) = answer.as_object().filter(|_| !known.is_empty()) else { return };
    for (name, value) in fields {
        assert!(known.contains(name), "{of}: `{name}` is not documented");
        hold(document, &property(document, schema, name), value, &format!("{of}.{name}"));
    }
}

fn resolved(document: &Value, schema: &Value) -> Value {
    match schema["$ref"].as_str() {
        Some(reference) => document.pointer(&reference[1..]).unwrap().clone(),
        None => schema.clone(),
    }
}

/// The schema of a field.
fn property(document: &Value, schema: &Value, name: &str) -> Value {
    let schema = resolved(document, schema);
    let parts = schema["allOf"].as_array().into_iter().flatten();
    let mut parts = parts.map(|part| property(document, part, name)).filter(|found| !found.is_null());
    schema["properties"].get(name).cloned().or_else(|| parts.next()).unwrap_or_default()
}

#[test]
fn every_example_is_accepted_and_every_answer_is_documented() {
    let pool = Pool::start();
    let document = document(&pool);
    let prepare = |pool: &Pool| {
        let run = pool.run_folder("run", 20);
        let mut of = job("x", "red", 4);
        of["launch"]["output"] = json!(run);
        let victim = pool.submit("ada", &of);
        pool.wait(victim, "running");
        pool.wait(pool.submit("cai", &job("y", "blue", 2)), "running");
        victim
    };
    let victim = prepare(&pool);
    let mut checked = 0;
    for (method, path, operation) in operations(&document) {
        let of = format!("{method} {path}");
        let schema = &operation["responses"]["200"]["content"]["application/json"]["schema"];
        if schema.is_null() {
            continue;
        }
        let at = path.replace("{id}", &victim.to_string()).replace("{name}", "dot");
        let at = if of == "get /pool/v1/speed" { format!("{at}?what=x") } else { at };
        let example = &operation["requestBody"]["content"]["application/json"]["example"];
        let reply = match of.as_str() {
            // In a pool whose projects are in use it is refused, as it should be.
            "put /pool/v1/policy" => Pool::start().put("root", &at, example),
            "post /pool/v1/jobs" => {
                let pool = Pool::start();
                let policy = &document["paths"]["/pool/v1/policy"]["put"];
                let policy = &policy["requestBody"]["content"]["application/json"]["example"];
                pool.put("root", "/pool/v1/policy", policy).json(200);
                pool.post("ada", &at, example)
            }
            "post /pool/v1/jobs/{id}/release" => {
                pool.post("root", &at.replace("release", "hold"), &json!({})).json(200);
                pool.post("root", &at, &json!({}))
            }
            "post /pool/v1/jobs/{id}/cancel" => {
                let other = pool.submit("ada", &job("z", "red", 1));
                pool.post("root", &format!("{JOBS}/{other}/cancel"), &json!({}))
            }
            _ => pool.ask("root", &method.to_uppercase(), &at, example.to_string().as_bytes()),
        };
        hold(&document, schema, &reply.json(200), &of);
        checked += 1;
    }
    assert!(checked > 20, "{checked}");
    assert_ne!(pool.get("root", "/pool/v1/evictions").json(200)["evictions"], json!([]));
}
