//! The stack of the kernel programs: 512 bytes over all frames of a chain of calls. Kernels before 6.6 round each frame up
//! to 32 bytes and newer ones to 16, so a program that loads here may be refused there.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::collections::{BTreeMap, BTreeSet};

use agent_common::layout::names::program;
use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionIndex, SymbolKind,
    read::elf::ElfFile64,
};

/// `MAX_BPF_STACK` of linux/filter.h.
const STACK: usize = 512;
/// How many frames a chain may have: `MAX_CALL_FRAMES` of linux/bpf_verifier.h.
const FRAMES: usize = 8;
/// What a frame is rounded up to, at most.
const ROUNDED: usize = 32;

/// A function, by its section and its place there.
type Place = (usize, u64);

/// What a function needs, and whom it calls.
#[derive(Debug, Default)]
struct Function {
    name: String,
    frame: usize,
    calls: BTreeSet<Place>,
}

/// Reads how deep a function reaches into its frame, and its calls: `target` resolves one by its place and its operand.
fn read(code: &[u8], target: impl Fn(usize, i32) -> Option<Place>) -> Function {
    let mut function = Function::default();
    // Registers that hold the frame's pointer, to which an offset is added next.
    let mut pointers = [false; 16];
    let mut reach = |offset: i64| function.frame = function.frame.max(usize::try_from(-offset).unwrap_or(0));
    for (n, instruction) in code.chunks_exact(8).enumerate() {
        let [operation, registers, a, b, c, d, e, f] = *instruction.as_array().unwrap();
        let (to, from) = (registers & 15, registers >> 4);
        let (offset, operand) = (i16::from_le_bytes([a, b]), i32::from_le_bytes([c, d, e, f]));
        match operation {
            // Loads by `from`, stores by `to`: classes LDX, ST and STX of linux/bpf_common.h.
            _ if operation & 7 == 1 && from == 10 || matches!(operation & 7, 2 | 3) && to == 10 => reach(offset.into()),
            0xbf => pointers[usize::from(to)] = from == 10,
            0x07 if std::mem::take(&mut pointers[usize::from(to)]) => reach(operand.into()),
            0x85 if from == 1 => function.calls.extend(target(n * 8, operand)),
            _ => {}
        }
    }
    function
}

fn functions(object: &[u8]) -> BTreeMap<Place, Function> {
    let file: ElfFile64<'_> = ElfFile64::parse(object).unwrap();
    let symbols: Vec<_> =
        file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0).collect();
    let starting = |section: SectionIndex, offset: u64| {
        let holds = |symbol: &&object::read::elf::ElfSymbol64<'_, '_>| {
            symbol.section_index() == Some(section)
                && (symbol.address()..symbol.address() + symbol.size()).contains(&offset)
        };
        symbols.iter().find(holds).map(|symbol| (section.0, symbol.address()))
    };
    let mut functions = BTreeMap::new();
    for symbol in &symbols {
        let index = symbol.section_index().unwrap();
        let section = file.section_by_index(index).unwrap();
        let (begin, size) = (symbol.address(), symbol.size());
        let range = usize::try_from(begin).unwrap()..usize::try_from(begin + size).unwrap();
        let relocations: BTreeMap<u64, _> = section
            .relocations()
            .filter_map(|(offset, relocation)| match relocation.target() {
                RelocationTarget::Symbol(symbol) => Some((offset, file.symbol_by_index(symbol).ok()?)),
                _ => None,
            })
            .collect();
        let target = |at: usize, operand: i32| {
            let at = begin + u64::try_from(at).unwrap();
            // It counts instructions from the next one; with a relocation to a section, from its beginning; with one to
            // a function it says nothing.
            let relative = |base: u64| base.checked_add_signed(i64::from(operand) * 8);
            match relocations.get(&at) {
                Some(symbol) if symbol.kind() == SymbolKind::Text => {
                    starting(symbol.section_index()?, symbol.address())
                }
                Some(symbol) => starting(symbol.section_index()?, relative(8)?),
                None => starting(index, relative(at + 8)?),
            }
        };
        let function = read(&section.data().unwrap()[range], target);
        let name = symbol.name().unwrap().to_owned();
        functions.insert((index.0, begin), Function { name, ..function });
    }
    functions
}

/// The chain of calls that needs most, in bytes, and its functions with their frames.
fn deepest(functions: &BTreeMap<Place, Function>, place: Place) -> (usize, Vec<String>) {
    let function = &functions[&place];
    let below = function.calls.iter().map(|call| deepest(functions, *call)).max().unwrap_or_default();
    let rounded = function.frame.max(1).next_multiple_of(ROUNDED);
    let own = format!("{} {}", function.name, function.frame);
    (rounded + below.0, [vec![own], below.1].concat())
}

#[test]
fn every_program_fits_the_stack_of_the_oldest_kernel() {
    let Some(object) = eastwall::datapath::object::bytes() else {
        println!("built without the kernel programs");
        return;
    };
    let functions = functions(object);
    let programs = program::ALL.iter().chain(&program::DEVICE);
    for name in programs {
        let (place, _) = functions.iter().find(|(_, function)| function.name == *name).unwrap();
        let (bytes, chain) = deepest(&functions, *place);
        println!("{name}: {bytes} bytes, {}", chain.join(" -> "));
        assert!(bytes <= STACK && chain.len() <= FRAMES, "{bytes} bytes of {STACK}: {chain:#?}");
    }
    // A reading that finds neither frames nor calls would find no mistake.
    let all: Vec<&Function> = functions.values().collect();
    assert!(all.iter().any(|function| function.frame > 128), "{all:#?}");
    let of = |name: &str| all.iter().find(|function| function.name == name).unwrap();
    assert!(of(program::EGRESS).calls.len() == 1 && of("ew_judge_egress").calls.len() > 4, "{all:#?}");
}
