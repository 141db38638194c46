use clap::{CommandFactory, Parser};

use super::{ActionFormat, Cli, Command, Format, Half, LinkCommand, SiteCommand};

fn parse(line: &str) -> Result<Command, String> {
    Cli::try_parse_from(line.split(' ')).map(|cli| cli.command).map_err(|error| error.to_string())
}

#[test]
fn the_tree_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_verb_has_help_with_exit_codes() {
    fn walk(command: &clap::Command, path: &str) {
        let path = format!("{path} {}", command.get_name());
        assert!(command.get_about().is_some(), "{path} has no about text");
        let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        if command.get_subcommands().next().is_none() {
            assert!(after.contains("Exit codes:"), "{path} does not name its exit codes");
        }
        for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
            assert!(argument.get_help().is_some(), "{path}: {} has no help", argument.get_id());
        }
        for below in command.get_subcommands() {
            walk(below, &path);
        }
    }
    walk(&Cli::command(), "");
}

/// The programs that a site's halves and a cluster's pods run as; here, because both are known here.
#[test]
fn help_and_version_of_the_other_programs_say_what_an_operator_needs() {
    for mut command in [linkspan_gateway::config::Args::command(), linkspan_mirror_controller::config::Args::command()]
    {
        let help = command.render_help().to_string();
        assert!(help.contains("-d, --dir") && help.contains("Examples:") && help.contains("Exit codes:"), "{help}");
        assert!(command.render_version().contains("commit"), "{}", command.render_version());
    }
}

#[test]
fn defaults() {
    let Ok(Command::Demo(demo)) = parse("linkspan demo") else { panic!("demo") };
    assert!(!demo.check && !demo.keep && demo.output == ActionFormat::Text && demo.serve.is_none());
    let Ok(Command::Site(SiteCommand::Run(run))) = parse("linkspan site run") else { panic!("site run") };
    assert_eq!(run.site.dir, std::path::Path::new("."));
    assert_eq!(run.log_filter, "info");
    assert!(run.only.is_none() && !run.until_stdin_ends);
    let Ok(Command::Link(LinkCommand::List(list))) = parse("linkspan link list -d east -o json") else {
        panic!("list")
    };
    assert_eq!(list.output.output, Format::Json);
    let Ok(Command::Link(LinkCommand::Import(import))) = parse("linkspan link import - -d east") else {
        panic!("import")
    };
    assert_eq!(import.file, std::path::Path::new("-"));
    let Ok(Command::Site(SiteCommand::Run(run))) = parse("linkspan site run --only controller") else { panic!("half") };
    assert_eq!(run.only, Some(Half::Controller));
}

#[test]
fn what_makes_no_sense_is_refused() {
    for line in [
        "linkspan",
        "linkspan link",
        "linkspan site init --dir x",
        "linkspan site init east",
        "linkspan site run --only both",
        "linkspan link import",
        "linkspan link export --no-address --address a:1",
        "linkspan identity issue -n a -s b",
        "linkspan identity issue -n a -s b --out x --hours 0",
        "linkspan identity issue -n a -s b --out x --hours 721",
        "linkspan demo --serve east",
        "linkspan demo -o yaml",
        "linkspan stat --window 0",
        "linkspan stat --window 61",
        "linkspan completions cmd",
        "linkspan gateways --dir a --context b",
        "linkspan check --dir a --kubeconfig b",
        "linkspan link list --dir a --linkspan-namespace b",
    ] {
        let error = parse(line).expect_err(line);
        assert!(error.contains("Usage:") || error.contains("--help"), "{line}: {error}");
    }
}

/// What a value's reader refuses ends with exit code 2 and names the option, as `--help` says.
#[test]
fn malformed_values_are_wrong_arguments() {
    for (line, names) in [
        ("site init East --dir x", "<NAME>"),
        ("site init east --dir x --trust-domain EAST", "--trust-domain"),
        ("site init east --dir x --advertise nowhere", "--advertise"),
        ("site init east --dir x --listen east:4143", "--listen"),
        ("site init east --dir x --mtls-listen 4193", "--mtls-listen"),
        ("site init east --dir x --dns-listen 53", "--dns-listen"),
        ("site init east --dir x --admin-listen ::1:80", "--admin-listen"),
        ("site init east --dir x --controller-admin-listen a", "--controller-admin-listen"),
        ("site init east --dir x --mirror-addresses 127.80.0.0", "--mirror-addresses"),
        ("site init east --dir x --workload 10.0.0.0/24", "--workload"),
        ("site init east --dir x --workload 10.0.0.0/24=Shop/web", "--workload"),
        ("site init east --dir x --workers 0", "--workers"),
        ("link export --address nowhere", "--address"),
        ("link remove West", "<NAME>"),
        ("link remove ../../etc", "<NAME>"),
        ("identity issue -n Shop -s web --out x", "--namespace"),
        ("identity issue -n shop -s we_b --out x", "--service-account"),
        ("services -n Shop", "--namespace"),
        ("services -c we/st", "--cluster"),
        ("exports -n Shop", "--namespace"),
        ("stat -n Shop", "--namespace"),
        ("stat -c West", "--cluster"),
        ("check -c West", "--cluster"),
        ("check --linkspan-namespace Mesh", "--linkspan-namespace"),
        ("check web", "NAMESPACE/SERVICE"),
        ("check --wait soon", "--wait"),
    ] {
        let words = ["linkspan"].into_iter().chain(line.split(' '));
        let error = Cli::try_parse_from(words).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}");
        assert!(error.to_string().contains(names), "{line}: {error}");
    }
}

#[test]
fn whatever_answers_takes_json() {
    for line in [
        "demo",
        "site init east -d x",
        "link import -",
        "link list",
        "link remove west",
        "identity issue -n shop -s web --out x",
        "gateways",
        "services",
        "exports",
        "check",
        "stat",
        "version",
    ] {
        parse(&format!("linkspan {line} -o json")).expect(line);
    }
}
