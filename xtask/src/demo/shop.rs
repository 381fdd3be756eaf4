//! The services: nginx, redis and PostgreSQL, each in its cgroup, on the loopback, without privileges.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{call::psql, cgroup, place::Place, policy_file::Ports};
use crate::run::run;

/// Where Debian keeps the servers of PostgreSQL, one directory a version.
const POSTGRES: &str = "/usr/lib/postgresql";

/// How long a service may take until it answers.
const START_MAX: Duration = Duration::from_secs(20);

/// The running shop.
pub struct Shop {
    /// Where the services listen.
    pub ports: Ports,
}

impl Shop {
    /// Starts the services and returns when all of them answer.
    ///
    /// # Errors
    ///
    /// One does not; its log is part of the message.
    pub fn open(place: &Place, ports: Ports) -> Result<Self> {
        start(place, "web", nginx(place, ports)?)?;
        start(place, "cart", redis(place, ports)?)?;
        start(place, "orders-db", postgres(place, ports)?)?;
        // From inside its own cgroup: every workload may speak to itself, and nobody else is to be reported.
        let port = ports.cart.to_string();
        let redis = |words: &[&str]| {
            let mut command = cgroup::command(&place.cgroup_of("cart"), "redis-cli");
            command.args(["-h", "127.0.0.1", "-p", &port]).args(words);
            command
        };
        let db = place.cgroup_of("orders-db");
        let page = format!("http://127.0.0.1:{}/", ports.web);
        wait(place, "web", || {
            let mut curl = cgroup::command(&place.cgroup_of("web"), "curl");
            quiet(curl.args(["--silent", "--fail", "--noproxy", "*", &page]))
        })?;
        wait(place, "cart", || quiet(&mut redis(&["ping"])))?;
        let fill = "create table orders as select generate_series(1, 3) as id";
        wait(place, "orders-db", || quiet(&mut psql(&db, ports, "select 1")))?;
        run(psql(&db, ports, fill).stdout(Stdio::null())).context("fill the database")?;
        run(redis(&["set", "cart:7", "2 apples"]).stdout(Stdio::null())).context("fill the cart")?;
        Ok(Self { ports })
    }
}

fn quiet(command: &mut Command) -> bool {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}

fn start(place: &Place, name: &str, mut command: Command) -> Result<()> {
    let log = File::create(log_of(place, name)).context("make a log")?;
    command.stdin(Stdio::null()).stdout(log.try_clone().context("share a log")?).stderr(log);
    let child = command.spawn().with_context(|| format!("start {name}"))?;
    place.record(name, child.id())
}

fn wait(place: &Place, name: &str, ready: impl Fn() -> bool) -> Result<()> {
    let end = Instant::now() + START_MAX;
    while !ready() {
        if Instant::now() > end {
            let log = fs::read_to_string(log_of(place, name)).unwrap_or_default();
            bail!("{name} does not answer after {} s; its log:\n{}", START_MAX.as_secs(), log.trim());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The log of a service.
pub fn log_of(place: &Place, name: &str) -> PathBuf {
    place.dir.join(format!("{name}.log"))
}

fn nginx(place: &Place, ports: Ports) -> Result<Command> {
    let dir = place.dir.join("web");
    fs::create_dir_all(dir.join("html")).context("make a directory for nginx")?;
    fs::write(dir.join("html/index.html"), "welcome to the shop\n").context("write a page")?;
    let config = format!(
        "daemon off;\nuser nobody nogroup;\nworker_processes 1;\npid {dir}/pid;\nerror_log stderr;\n\
         events {{}}\n\
         http {{\n  access_log off;\n  client_body_temp_path {dir}/a;\n  proxy_temp_path {dir}/b;\n  \
         fastcgi_temp_path {dir}/c;\n  uwsgi_temp_path {dir}/d;\n  scgi_temp_path {dir}/e;\n  \
         server {{ listen 127.0.0.1:{port}; root {dir}/html; }}\n}}\n",
        dir = dir.display(),
        port = ports.web,
    );
    fs::write(dir.join("nginx.conf"), config).context("write nginx.conf")?;
    let mut command = cgroup::command(&place.cgroup_of("web"), "nginx");
    command.args(["-e", "stderr", "-c"]).arg(dir.join("nginx.conf"));
    Ok(command)
}

fn redis(place: &Place, ports: Ports) -> Result<Command> {
    let dir = own_directory(place, "cart", "nobody")?;
    let mut command = cgroup::command(&place.cgroup_of("cart"), "setpriv");
    command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups", "redis-server"]);
    command.args(["--bind", "127.0.0.1", "--port", &ports.cart.to_string()]);
    command.args(["--save", "", "--appendonly", "no", "--dir"]).arg(dir);
    Ok(command)
}

fn postgres(place: &Place, ports: Ports) -> Result<Command> {
    let bin = postgres_bin()?;
    let dir = own_directory(place, "orders-db", "postgres")?;
    let mut init = Command::new("setpriv");
    init.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(bin.join("initdb"));
    init.args(["--username=shop", "--auth=trust", "--no-sync", "--locale=C", "--encoding=UTF8", "--pgdata"]);
    run(init.arg(dir.join("data")).current_dir(&dir).stdout(Stdio::null())).context("make a database")?;
    let mut command = cgroup::command(&place.cgroup_of("orders-db"), "setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(bin.join("postgres"));
    command.arg("-D").arg(dir.join("data")).args(["-p", &ports.orders_db.to_string()]);
    for setting in [
        "listen_addresses=127.0.0.1",
        "unix_socket_directories=",
        "fsync=off",
        // Killed, it leaves nothing behind in memory that others share.
        "dynamic_shared_memory_type=mmap",
        // A query whose caller has gone ends at once, and the log says so.
        "client_connection_check_interval=20ms",
        "log_disconnections=on",
    ] {
        command.args(["-c", setting]);
    }
    command.current_dir(&dir);
    Ok(command)
}

/// Returns the directory with the newest version's programs.
fn postgres_bin() -> Result<PathBuf> {
    let versions = fs::read_dir(POSTGRES).with_context(|| format!("look into {POSTGRES}"))?;
    let mut numbers: Vec<u32> = versions.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    let newest = numbers.last().with_context(|| format!("there is no server of PostgreSQL in {POSTGRES}"))?;
    Ok(Path::new(POSTGRES).join(newest.to_string()).join("bin"))
}

/// Makes a directory that belongs to `user`.
fn own_directory(place: &Place, name: &str, user: &str) -> Result<PathBuf> {
    let dir = place.dir.join(name);
    fs::create_dir_all(&dir).with_context(|| format!("make a directory for {name}"))?;
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).context("close a directory")?;
    run(Command::new("chown").arg(user).arg(&dir))?;
    Ok(dir)
}
