import TRMCore
import Testing

@testable import TRMBenchKit

@Suite struct GenerateOptionsTests {
    @Test func usualValuesAreThoseOfTheSettings() throws {
        let found = try GenerateOptions(["--model", "a"])
        #expect(found.model == "a" && found.prompt == nil && found.promptFile == nil && !found.chat && !found.json)
        #expect(found.settings == GenerationSettings())
    }

    @Test func everyFlagIsRead() throws {
        let words =
            "--model=a --prompt= --chat --json --max-tokens 9 --depth 2 --temperature 0.5 --top-k 7 --top-p 0.9 "
            + "--min-p 1e-1 --typical-p 0.7 --repetition-penalty 1.1 --presence-penalty -2 --frequency-penalty 3 "
            + "--seed 18446744073709551615 --stop b --stop=c=d --bias fox=-2.5 --bias #3=1 --ban --json --no-repeat-ngram 4"
        let found = try GenerateOptions(words.split(separator: " ").map(String.init))
        #expect(found.prompt == "" && found.chat && found.json)
        let sampling = SamplingConfig(
            temperature: 0.5, topK: 7, topP: 0.9, minP: 0.1, typicalP: 0.7, repetitionPenalty: 1.1,
            presencePenalty: -2, frequencyPenalty: 3, seed: .max)
        let steer = WordsConfig(bias: ["fox=-2.5", "#3=1"], ban: ["--json"], noRepeatNgram: 4)
        let wanted = GenerationSettings(
            maxTokens: 9, depth: 2, stop: ["b", "c=d"], sampling: sampling, words: steer)
        #expect(found.settings == wanted)
        #expect(try GenerateOptions(["--prompt-file", "-", "--model", "a"]).promptFile == "-")
    }

    @Test(arguments: [
        ("", "give --model DIR; see --help"),
        ("--model=", "--model must not be empty"),
        ("--model a --prompt b --prompt c", "--prompt must be given once"),
        ("--model a --prompt b --prompt-file c", "give --prompt or --prompt-file, not both"),
        ("--model a --prompt-file=", "--prompt-file must not be empty"),
        ("--model a --json=yes", "--json takes no value, got \"--json=yes\""),
        ("--model a --stop", "--stop must have a value after it"),
        ("--model a --top-k 1.5", "--top-k must be a whole number, got \"1.5\""),
        ("--model a --temperature 0x1p-1", "--temperature must be a number, got \"0x1p-1\""),
        ("--model a --temperature inf", "--temperature must be a number, got \"inf\""),
        ("--model a --seed -1", "--seed must be a whole number from 0 to 2^64 - 1, got \"-1\""),
        ("--model a --temp 1", "unknown argument \"--temp\"; see --help"),
        ("--model a --backend table", "unknown argument \"--backend\"; see --help"),
    ]) func whatCannotBeAskedIsRefusedInOneLine(line: String, sentence: String) {
        let error = #expect(throws: UsageError.self) {
            try GenerateOptions(line.split(separator: " ").map(String.init))
        }
        #expect(error?.reason == sentence)
    }

    @Test(arguments: [
        "--top-p 0", "--temperature 1e999", "--max-tokens 0", "--stop=", "--bias fox", "--ban \u{FFFD}",
    ])
    func settingsOutOfTheirRangesAreRefused(line: String) {
        #expect(throws: GenerationError.self) {
            try GenerateOptions(["--model", "a"] + line.split(separator: " ").map(String.init))
        }
    }
}
