//! Adapters that belong to a tenant: what the API makes of them, before anything registers one.

use axum::http::header;
use infer::Adapter;
use sha2::{Digest, Sha256};

use super::*;
use crate::tenants::Tenants;

fn store(root: &Path) -> Arc<Adapters> {
    let loader = |path: &Path| match path.ends_with("broken") {
        true => Err("it is broken".to_owned()),
        false => {
            let adapter = Adapter::zeros(model::Layout::default(), 0.0, &compute::Device::cpu(1));
            Ok(LoadedAdapter { adapter: Arc::new(adapter), rank: 8, bytes: 60, chat: None })
        }
    };
    Arc::new(Adapters::open(Box::new(loader), Some(root), Some(100), "base".into()).unwrap())
}

/// Two tenants that may use all that is shared, one that may use `shared` and `ft:alpha` by name, an
/// administrator.
fn tenants(folder: &Path) -> Vec<Arc<Tenant>> {
    let tenant = |(name, more): (&str, &str)| {
        let key: String = Sha256::digest(name).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("- {{tenant: {name}, key_sha256: {key}, {more}}}\n")
    };
    let all = [
        ("alpha", "adapters: ['*']"),
        ("beta", "adapters: ['*']"),
        ("gamma", "adapters: [shared, 'ft:alpha']"),
        ("root", "admin: true"),
    ];
    let path = folder.join("keys.yaml");
    std::fs::write(&path, all.map(tenant).concat()).unwrap();
    let tenants = Tenants::read(&path).unwrap();
    let identify = |(name, _): (&str, &str)| {
        let shown = [(header::AUTHORIZATION, format!("Bearer {name}").parse().unwrap())];
        tenants.identify(&shown.into_iter().collect()).unwrap().tenant
    };
    all.map(identify).to_vec()
}

#[tokio::test]
async fn what_a_tenant_trained_is_seen_by_it_and_by_administrators() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    std::fs::create_dir_all(root.join("shared")).unwrap();
    std::fs::write(root.join("shared/adapter_config.json"), "{}").unwrap();
    let (store, tenants) = (store(&root), tenants(folder.path()));
    store.register("ft:alpha", &folder.path().join("trained"), "alpha").unwrap();
    let listed = |tenant: &Tenant| -> Vec<String> {
        store.list(tenant).into_iter().map(|adapter| adapter.name).collect()
    };
    let [alpha, beta, gamma, admin] = &tenants[..] else { panic!("{tenants:?}") };
    assert_eq!(listed(alpha), ["ft:alpha", "shared"]);
    assert_eq!(listed(beta), ["shared"]);
    assert_eq!(listed(gamma), ["shared"], "a name in a file is no right to what belongs to another");
    assert_eq!(listed(admin), ["ft:alpha", "shared"]);
    for (tenant, sees) in [(alpha, true), (beta, false), (gamma, false), (admin, true)] {
        assert_eq!(store.has("ft:alpha", tenant), sees);
        assert_eq!(store.acquire("ft:alpha", tenant).await.is_ok(), sees);
    }
    // In memory or not, and there or not: the words are the same.
    let told = |error: ApiError| error.body().to_string();
    let others = told(store.acquire("ft:alpha", beta).await.unwrap_err());
    assert_eq!(others.replace("ft:alpha", "none"), told(store.acquire("none", beta).await.unwrap_err()));
}

#[tokio::test]
async fn what_a_tenant_trained_leaves_memory_and_comes_back_until_it_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let (store, tenants) = (store(folder.path()), tenants(folder.path()));
    let alpha = &tenants[0];
    for name in ["one", "two"] {
        store.register(name, &folder.path().join(name), "alpha").unwrap();
    }
    let number = |made: Arc<Generation>| made.number;
    assert_eq!(store.acquire("one", alpha).await.map(number).unwrap(), 1);
    // There is room for one of them.
    assert_eq!(store.acquire("two", alpha).await.map(number).unwrap(), 2);
    assert_eq!(store.list(alpha)[0].state, "cold");
    assert_eq!(store.acquire("one", alpha).await.map(number).unwrap(), 3);
    store.unload("one", Some(3)).unwrap();
    assert_eq!(store.acquire("one", alpha).await.map(number).unwrap(), 4);
    // It is not replaced, not even by an administrator, and its name is not given twice.
    let replace = Conditions { replace: true, ..Conditions::default() };
    assert!(store.load("one", "x", replace).await.is_err());
    for (name, words) in [("one", "taken"), ("base", "taken"), ("a b", "cannot be"), ("", "cannot be")] {
        let told = store.register(name, folder.path(), "beta").unwrap_err();
        assert!(told.contains(words), "{told}");
    }
    assert!(!store.remove("one", "beta") && store.remove("one", "alpha") && !store.remove("one", "alpha"));
    assert!(store.acquire("one", alpha).await.is_err());
}

#[tokio::test]
async fn an_adapter_that_left_memory_keeps_its_generation_in_comparisons() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a", "b"] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
    }
    let store = store(folder.path());
    let load = |name: &'static str, expected: Option<u64>| {
        let conditions = Conditions { expected, ..Conditions::default() };
        let store = Arc::clone(&store);
        async move { store.load(name, name, conditions).await.map(|made| made.number) }
    };
    assert_eq!(load("a", Some(0)).await.unwrap(), 1);
    assert_eq!(load("b", Some(0)).await.unwrap(), 2);
    // `a` had to leave for `b`, and is still what was loaded.
    assert!(load("a", Some(0)).await.is_err());
    assert_eq!(load("a", Some(1)).await.unwrap(), 3);
}

/// A checkpoint that is written again has its name and its folder again.
#[tokio::test]
async fn a_load_of_what_was_made_again_meanwhile_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (begun, begins) = std::sync::mpsc::channel();
    let (go, goes) = std::sync::mpsc::channel::<()>();
    let goes = Mutex::new(goes);
    let loader = move |_: &Path| {
        let _ = begun.send(());
        goes.lock().unwrap().recv().unwrap();
        let adapter = Adapter::zeros(model::Layout::default(), 0.0, &compute::Device::cpu(1));
        Ok(LoadedAdapter { adapter: Arc::new(adapter), rank: 8, bytes: 60, chat: None })
    };
    let store = Arc::new(Adapters::open(Box::new(loader), None, None, "base".into()).unwrap());
    let alpha = Arc::clone(&tenants(folder.path())[0]);
    store.register("one", folder.path(), "alpha").unwrap();
    let load = tokio::spawn({
        let (store, alpha) = (Arc::clone(&store), Arc::clone(&alpha));
        async move { store.acquire("one", &alpha).await.map(|made| made.number) }
    });
    tokio::task::spawn_blocking(move || begins.recv().unwrap()).await.unwrap();
    assert!(store.remove("one", "alpha"));
    store.register("one", folder.path(), "alpha").unwrap();
    go.send(()).unwrap();
    let told = load.await.unwrap().unwrap_err();
    assert!(told.message().contains("was replaced"), "{}", told.message());
    go.send(()).unwrap();
    assert_eq!(store.acquire("one", &alpha).await.unwrap().number, 1);
}
