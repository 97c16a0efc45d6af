//! The process beside a job's process, as `luthier pool attempt` is, for tests that start processes without
//! the whole program.

fn main() -> std::io::Result<()> {
    let folder = std::env::args_os().nth(1).expect("a folder");
    jobs::executor::run_attempt(std::path::Path::new(&folder))
}
