//! What scripts see of the command: exit codes, a closed output, what it says of its build.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// The demo is ready in two seconds and cleans up in less; the rest is for a machine under load.
const PATIENCE: Duration = Duration::from_secs(60);

fn linkspan(line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_linkspan"));
    command.args(line.split_whitespace()).stdin(Stdio::null());
    command
}

fn output(line: &str, dir: &Path) -> Output {
    linkspan(line).current_dir(dir).output().expect("runs")
}

fn end(mut child: Child) -> ExitStatus {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("waits") {
            return status;
        }
        if begun.elapsed() > PATIENCE {
            child.kill().expect("kills");
            panic!("it never ends");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Processes of the demo in `folder` are named after it: their arguments hold its path.
fn processes_below(folder: &Path) -> Vec<String> {
    let lines = fs::read_dir("/proc").expect("proc").flatten();
    let lines = lines.filter_map(|entry| fs::read_to_string(entry.path().join("cmdline")).ok());
    lines.filter(|line| line.contains(folder.to_str().expect("text"))).collect()
}

fn the_demo_ends_with_its_reader(arguments: &str) {
    let folder = tempfile::tempdir().expect("folder");
    let mut demo = linkspan(arguments)
        .env("TMPDIR", folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("runs");
    let mut errors = demo.stderr.take().expect("piped");
    let mut lines = BufReader::new(demo.stdout.take().expect("piped")).lines();
    lines.next().expect("a line").expect("text");
    drop(lines);
    assert_eq!(end(demo).code(), Some(0));
    let mut told = String::new();
    errors.read_to_string(&mut told).expect("text");
    assert_eq!(told, "", "it ends quietly");
    assert_eq!(fs::read_dir(folder.path()).expect("folder").count(), 0, "its folder is gone");
    assert_eq!(processes_below(folder.path()), Vec::<String>::new(), "so are its processes");
}

/// `linkspan demo | head -1` once ran for ever.
#[test]
fn the_story_ends_when_nobody_reads_it() {
    the_demo_ends_with_its_reader("demo");
}

#[test]
fn the_demo_for_programs_ends_when_its_reader_does() {
    the_demo_ends_with_its_reader("demo -o json");
}

#[test]
fn a_closed_output_is_no_failure_of_any_command() {
    let folder = tempfile::tempdir().expect("folder");
    for (line, code) in [
        ("version", 0),
        ("version -o json", 0),
        ("completions bash", 0),
        ("--help", 0),
        ("site init east --dir east", 0),
        ("link export --dir east --no-address", 0),
        ("link list --dir east -o json", 0),
        ("check --dir east", 1),
        ("site init East --dir east", 2),
    ] {
        let mut command = linkspan(line);
        let (reader, writer) = std::io::pipe().expect("pipe");
        drop(reader);
        let output = command.current_dir(&folder).stdout(writer).output().expect("runs");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{line}: {told}");
        assert!(code == 2 || told.is_empty(), "{line}: {told}");
    }
}

#[test]
fn exit_codes_are_as_help_says() {
    let folder = tempfile::tempdir().expect("folder");
    for (line, code, says) in [
        ("site init east --dir east", 0, ""),
        ("site init east --dir east", 1, "exists already"),
        ("site init west --dir west --mirror-addresses 10.0.0.0/30", 2, "mirrorAddresses"),
        ("site init west --dir west --workload x", 2, "CIDR=NAMESPACE/ACCOUNT"),
        ("site run --dir east --log-filter a=b=c", 2, "--log-filter"),
        ("site run --dir nowhere", 1, "there is no site in nowhere"),
        ("gateways --dir nowhere", 1, "there is no site in nowhere"),
        ("services --dir east", 1, "linkspan site run --dir east"),
        ("link import nothing.yaml --dir east", 1, "nothing.yaml"),
        ("link remove west --dir east", 1, "linkspan link list"),
        ("identity issue --dir east -n Shop -s web --out x", 2, "--namespace"),
        ("check --dir east --cluster We/st", 2, "--cluster"),
        ("stat --window 61", 2, "--window"),
        ("nonsense", 2, "nonsense"),
    ] {
        let output = output(line, folder.path());
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{line}: {told}");
        assert!(told.contains(says), "{line}: {told}");
    }
    let full = fs::File::options().write(true).open("/dev/full").expect("opens");
    let failed = linkspan("version").stdout(full).output().expect("runs");
    assert_eq!(failed.status.code(), Some(1), "what could not be printed is not done");
}

#[test]
fn a_build_from_git_knows_its_commit() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let version = output("version -o json", &root);
    let version: serde_json::Value = serde_json::from_slice(&version.stdout).expect("JSON");
    let commit = version["commit"].as_str().expect("text");
    if root.join(".git").exists() {
        assert!(commit.len() == 12 && commit.bytes().all(|digit| digit.is_ascii_hexdigit()), "{commit}");
    }
}
