//! Documents from people who mean harm.

use super::{
    super::super::{node_file, problem::PROBLEMS_MAX},
    *,
};

/// The processor's time of this thread: a busy machine must not fail a test of what reading costs.
struct CpuTime(Duration);

impl CpuTime {
    fn now() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Self(now.try_into().unwrap())
    }

    fn elapsed(&self) -> Duration {
        Self::now().0 - self.0
    }
}

/// The one problem of a text that cannot be read.
fn only_problem(text: &str) -> String {
    let problems = document(text).unwrap_err();
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems[0].in_file("f")
}

#[test]
fn broken_text_is_refused_with_its_place() {
    check("a: b\0: c", "f:1: a NUL byte in the text (remove it)");
    let tab = only_problem("services:\n\tapi: {}\n");
    assert!(tab.starts_with("f:2: ") && tab.ends_with("(indent with spaces, not tabs)"), "{tab}");
    let open = only_problem("services: { api: {}\n");
    assert!(open.starts_with("f:"), "{open}");
    let control = "services: { s: { endpoints: [{ address: \"a\\0\\e[31m:80\" }] } }";
    check(control, "f:1: services.s.endpoints[0].address: `a\\u{0}\\u{1b}[31m` is not a host name");
}

#[test]
fn deep_nesting_is_refused() {
    let flow = "[".repeat(100_000);
    let block = "- ".repeat(100_000);
    let keys: String = (0..2_000).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    for text in [flow, block, keys] {
        let problem = only_problem(&text);
        assert!(problem.ends_with("nested more than 64 levels deep"), "{problem}");
    }
}

#[test]
fn aliases_cannot_make_a_small_text_large_or_deep() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    let mut chain = format!("a0: &a0 {}x{}\n", "[".repeat(50), "]".repeat(50));
    for level in 1..30 {
        let below = level - 1;
        bomb += &format!("a{level}: &a{level} [{}]\n", vec![format!("*a{below}"); 10].join(", "));
        chain += &format!("a{level}: &a{level} {}*a{below}{}\n", "[".repeat(50), "]".repeat(50));
    }
    let long = format!("a: &a \"{}\"\nb: [{}]\n", "x".repeat(1 << 20), vec!["*a"; 10_000].join(", "));
    assert!(only_problem(&bomb).contains("more than 1000000 values"));
    assert!(only_problem(&chain).contains("nested more than 64 levels"));
    assert!(only_problem(&long).contains("more than 1000000 values"));
    assert!(only_problem("a: &a [*a]").contains("alias inside the value"));
}

#[test]
fn an_endless_file_is_not_read_to_its_end() {
    let problem = yaml::read(std::path::Path::new("/dev/zero")).unwrap_err();
    assert_eq!(problem.to_string(), "the file has more than 8388608 bytes");
}

#[test]
fn large_texts_are_read_in_time_or_refused() {
    let begin = CpuTime::now();
    let service = |n: usize| format!("  service-{n}: {{ endpoints: [{{ address: \"10.0.0.1:9000\" }}] }}\n");
    let route = |n: usize| format!("  - {{ name: r{n}, match: {{ path: /p{n} }}, service: service-{n} }}\n");
    let mut text = "services:\n".to_owned();
    text.extend((0..10_000).map(service));
    text += "routes:\n";
    text.extend((0..10_000).map(route));
    assert_eq!(valid(&text).routes.len(), 10_000);

    let wrong = text.replace("service: service-", "service: servize-");
    assert_eq!(document(&wrong).unwrap_err().len(), PROBLEMS_MAX + 1);
    let long_line = format!("routes: [{}]", "1,".repeat(400_000));
    assert_eq!(document(&long_line).unwrap_err().len(), PROBLEMS_MAX + 1);
    let unknown: String = (0..50_000).map(|n| format!("key{n}: 1\n")).collect();
    assert_eq!(document(&unknown).unwrap_err().len(), PROBLEMS_MAX + 1);
    let too_large = "#".repeat(yaml::TEXT_BYTES_MAX + 1);
    assert!(only_problem(&too_large).contains("more than 8388608"));
    assert!(only_problem(&"x".repeat(yaml::TEXT_BYTES_MAX)).contains("expected a mapping"));
    assert!(begin.elapsed() < Duration::from_secs(30), "took {:?}", begin.elapsed());
}

/// Pieces of YAML syntax: what a scanner has to look back or ahead for.
const PIECES: [&str; 24] = [
    "{", "}", "[", "]", ":", ": ", "- ", "\n", "\n  ", "\t", "&a ", "*a", "!!str ", "|\n", ">-\n", "\"", "'",
    "#", "? ", "<<: ", "%41", "\u{feff}", "é", "---\n",
];

#[test]
fn one_piece_of_syntax_repeated_takes_time_in_proportion() {
    let endless = [
        "a: ",
        "a:\n",
        "{a: ",
        "{a, ",
        "[a, ",
        "a ",
        "\"a\\\n",
        "&a a\n",
        "- a\n",
        "? a\n",
        "# a\n",
        "%TAG ! a\n",
    ];
    for piece in PIECES.iter().chain(&endless) {
        for head in ["", "a: ", "[", "{", "\"", "|\n "] {
            let text = format!("{head}{}", piece.repeat((96 << 10) / piece.len()));
            let begin = CpuTime::now();
            document(&text).unwrap_err();
            assert!(begin.elapsed() < Duration::from_secs(5), "{head:?} {piece:?}: {:?}", begin.elapsed());
        }
    }
}

/// Numbers from a seed (xorshift), so that a failure can be repeated.
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).unwrap()
    }
}

#[test]
fn no_edit_of_a_valid_document_panics_or_takes_long() {
    let original = include_str!("../../../docs/examples/gateway.yaml");
    let lines: Vec<&str> = original.lines().collect();
    let mut valid_ones = 0;
    for seed in 1..=2_000_u64 {
        let mut random = Seeded(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut characters: Vec<char> = original.chars().collect();
        for _ in 0..=random.below(4) {
            let at = random.below(characters.len().max(1));
            match random.below(4) {
                0 => {
                    characters.drain(at..characters.len().min(at + 1));
                }
                1 => {
                    characters.splice(at..at, PIECES[random.below(PIECES.len())].chars());
                }
                2 => {
                    let line = lines[random.below(lines.len())];
                    characters.splice(at..at, format!("\n{line}\n").chars());
                }
                _ => characters.truncate(at.max(1)),
            }
        }
        let text: String = characters.into_iter().collect();
        let begin = CpuTime::now();
        match document(&text) {
            Ok(_) => valid_ones += 1,
            Err(problems) => assert!(!problems.is_empty(), "seed {seed}"),
        }
        assert!(begin.elapsed() < Duration::from_secs(5), "seed {seed} took {:?}", begin.elapsed());
    }
    assert!(valid_ones > 0, "no edit left the document valid: the edits are too rough to test much");
}

#[test]
fn no_soup_of_syntax_and_keys_panics() {
    const KEYS: [&str; 12] = [
        "routes",
        "services",
        "name",
        "match",
        "peers",
        "cluster",
        "node",
        "bind",
        "a",
        "10.0.0.1:80",
        "5s",
        "null",
    ];
    for seed in 1..=20_000_u64 {
        let mut random = Seeded(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let length = 1 + random.below(40);
        let mut text = String::new();
        for _ in 0..length {
            match random.below(2) {
                0 => text += PIECES[random.below(PIECES.len())],
                _ => text += KEYS[random.below(KEYS.len())],
            }
        }
        // Whatever they say: that they say it is what is tested.
        let _ = (document(&text).is_ok(), node_file::check(&text).is_ok());
    }
}
