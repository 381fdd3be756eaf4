//! The machine: QEMU, with the host's files behind a socket of virtiofsd.

use std::{
    fs,
    io::BufReader,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{files::Files, initramfs, kernels::Kernel};

/// Where Debian 12 has virtiofsd, and where later releases have it.
pub const VIRTIOFSD: [&str; 2] = ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"];

/// How long virtiofsd may take to begin.
const PATIENCE: Duration = Duration::from_secs(10);

/// Lines of the guest's console that are shown when it dies.
const CONSOLE_LINES: usize = 40;

/// What the machine has.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Processors.
    pub cpus: u32,
    /// MiB.
    pub memory: u32,
}

/// How a run ended.
pub enum Ended {
    /// The command's status.
    Status(u8),
    /// The machine was stopped, since time ran out.
    TimeRanOut,
}

/// Says whether the processor has what KVM needs to start any kernel. `/dev/kvm` alone says little: where a machine is
/// itself a guest, it may be there and start none.
pub fn has_kvm() -> bool {
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has_flag = flags.split_whitespace().any(|word| word == "vmx" || word == "svm");
    has_flag && fs::File::options().read(true).write(true).open("/dev/kvm").is_ok()
}

/// How often a machine is booted that dies before its command has said anything: an emulated one does that now and then,
/// while its kernel patches itself.
const BOOTS: u32 = 3;

/// Boots `kernel`, runs `command` there, a script for sh(1), and hands each line that it prints to `take`. Nothing of what
/// it writes comes back, so that a boot may be tried again.
///
/// # Errors
///
/// The machine does not start, or dies without a status.
pub fn run(
    kernel: &Kernel,
    files: &Files,
    command: &str,
    size: Size,
    limit: Duration,
    directory: &Path,
    mut take: impl FnMut(&str) + Send,
) -> Result<Ended> {
    let place = Place::make(directory)?;
    fs::write(place.0.join("initramfs"), initramfs::build(kernel, files, command)?).context("write initramfs")?;
    let mut boots = 1;
    loop {
        let mut has_spoken = false;
        let ended = boot(kernel, size, limit, &place, |line| {
            has_spoken = true;
            take(line);
        });
        match ended {
            Err(e) if !has_spoken && boots < BOOTS && fs::exists(place.0.join("console")).unwrap_or(false) => {
                eprintln!("the machine died while it booted ({}); it is booted again", last_words(&e));
                boots += 1;
            }
            ended => return ended,
        }
    }
}

/// The last line of an error, which is that of a console.
fn last_words(error: &anyhow::Error) -> String {
    let text = error.to_string();
    let panic = text.lines().rfind(|line| line.contains("Kernel panic"));
    panic.or(text.lines().last()).unwrap_or_default().trim().to_owned()
}

fn boot(kernel: &Kernel, size: Size, limit: Duration, place: &Place, take: impl FnMut(&str) + Send) -> Result<Ended> {
    let _ = fs::remove_file(place.0.join("files"));
    fs::write(place.0.join("status"), "").context("make a file for the status")?;
    let _files = share_root(place)?;
    let mut child = Running::start(qemu(kernel, size, place), kernel.arch.qemu())?;
    let output = child.0.stdout.take().context("QEMU has no output")?;
    let ended = thread::scope(|scope| {
        let reader = scope.spawn(move || read_lines(BufReader::new(output), take));
        let ended = child.wait(limit);
        // The pipe ends with QEMU, and so does its reader.
        drop(child);
        let _ = reader.join();
        ended
    })?;
    if !ended {
        return Ok(Ended::TimeRanOut);
    }
    let status = fs::read_to_string(place.0.join("status")).context("read the status")?;
    match status.trim().parse() {
        Ok(status) => Ok(Ended::Status(status)),
        Err(_) => {
            let console = fs::read(place.0.join("console")).unwrap_or_default();
            let console = String::from_utf8_lossy(&console).into_owned();
            let lines: Vec<&str> = console.lines().collect();
            let tail = lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n");
            bail!("the machine ended without a status: {}\nits console said last:\n{tail}", status.trim())
        }
    }
}

fn read_lines(mut from: impl std::io::BufRead, mut take: impl FnMut(&str)) {
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        take(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']));
        line.clear();
    }
}

/// Lets virtiofsd offer the host's root. The guest mounts it to be read.
fn share_root(place: &Place) -> Result<Running> {
    let program = VIRTIOFSD.into_iter().find(|path| Path::new(path).exists()).context("virtiofsd is missing")?;
    let socket = place.0.join("files");
    let mut command = bound_to_us(program);
    command.arg(format!("--socket-path={}", socket.display()));
    // The program of Debian 12 is another one, with options of its own.
    if program == VIRTIOFSD[0] {
        command.args(["-o", "source=/", "-o", "cache=always", "-o", "sandbox=chroot", "-o", "xattr"]);
    } else {
        command.args(["--shared-dir=/", "--cache=always", "--sandbox=none", "--xattr"]);
    }
    let log = fs::File::create(place.0.join("virtiofsd.log")).context("make a log for virtiofsd")?;
    command.stdout(log.try_clone().context("share a log")?).stderr(log);
    let mut running = Running::start(command, program)?;
    let start = Instant::now();
    while !socket.exists() {
        let is_dead = running.0.try_wait().context("look at virtiofsd")?.is_some();
        if is_dead || start.elapsed() > PATIENCE {
            let log = fs::read_to_string(place.0.join("virtiofsd.log")).unwrap_or_default();
            bail!("virtiofsd does not start: {}", log.trim());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(running)
}

fn qemu(kernel: &Kernel, size: Size, place: &Place) -> Command {
    let file = |name: &str| place.0.join(name).display().to_string();
    let memory = size.memory;
    let mut qemu = bound_to_us(kernel.arch.qemu());
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    if kernel.arch.is_emulated() {
        qemu.args(["-accel", "tcg,thread=multi", "-cpu", kernel.arch.cpu()]);
    } else {
        qemu.args(["-accel", "kvm", "-cpu", "host"]);
    }
    let board = kernel.arch.board();
    qemu.args(["-machine", &format!("{},memory-backend=memory", board.machine)]);
    qemu.args(["-smp", &size.cpus.to_string(), "-m", &memory.to_string()]);
    qemu.args(["-object", &format!("memory-backend-memfd,id=memory,size={memory}M,share=on")]);
    qemu.args(["-chardev", &format!("socket,id=files,path={}", file("files"))]);
    qemu.args(["-device", "vhost-user-fs-pci,chardev=files,tag=host,queue-size=1024"]);
    qemu.args(["-chardev", &format!("file,id=console,path={}", file("console")), "-serial", "chardev:console"]);
    qemu.args(["-device", "virtio-serial-pci,max_ports=4"]);
    qemu.args(["-chardev", "file,id=output,path=/dev/stdout", "-device", "virtserialport,chardev=output,name=output"]);
    qemu.args(["-chardev", &format!("file,id=status,path={}", file("status"))]);
    qemu.args(["-device", "virtserialport,chardev=status,name=status"]);
    qemu.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(file("initramfs"));
    // Randomness of addresses and mitigations only make an emulated machine slower.
    let common = "quiet loglevel=3 panic=-1 oops=panic random.trust_cpu=on nokaslr mitigations=off net.ifnames=0";
    qemu.args(["-append", &format!("{common} {}", board.parameters)]);
    qemu.stdout(Stdio::piped());
    qemu
}

/// Returns a program that ends with this one, however this one ends.
fn bound_to_us(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", program]);
    command
}

/// A program that ends with this value.
struct Running(Child);

impl Running {
    fn start(mut command: Command, name: &str) -> Result<Self> {
        let child = command.stdin(Stdio::null()).spawn();
        Ok(Self(child.with_context(|| format!("start {name}"))?))
    }

    /// Says whether it ended by itself in time.
    fn wait(&mut self, limit: Duration) -> Result<bool> {
        let start = Instant::now();
        while self.0.try_wait().context("look at QEMU")?.is_none() {
            if start.elapsed() > limit {
                return Ok(false);
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(true)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory that goes with this value.
struct Place(PathBuf);

impl Place {
    fn make(directory: &Path) -> Result<Self> {
        let path = directory.join(format!("run-{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
