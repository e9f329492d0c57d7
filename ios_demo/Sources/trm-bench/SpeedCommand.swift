import Foundation
import TRMBenchKit
import TRMCore

/// `trm-bench speed`: how fast all that stands around a model is.
enum SpeedCommand {
    static let help = """
        usage: trm-bench speed --model DIR --text FILE

          --model DIR   model folder, of which the tokenizer is measured
          --text FILE   what it encodes, and decodes token by token

        Prints medians and spreads of eleven rounds, also of the sampler at a vocabulary of 8,192 with top-k 40.
        """
    private static let rounds = 11
    private static let draws = 1000  // tokens a round

    static func run(_ words: [String]) throws -> Int32 {
        let found = try Arguments(words, valued: ["--model", "--text"], plain: [])
        guard let model = try found.name("--model"), let file = try found.name("--text") else {
            throw UsageError("give --model DIR and --text FILE; see --help")
        }
        _ = try ModelArgument(model).modelFolder()
        let folder = URL(fileURLWithPath: model)
        let tokenizer = try Tokenizer(contentsOf: folder.appendingPathComponent(Manifest.tokenizerName))
        guard let data = FileManager.default.contents(atPath: file), !data.isEmpty else {
            throw UsageError("--text must name a file that holds text, got \(file.debugDescription)")
        }
        let bytes = [UInt8](data)
        let (ids, size) = (tokenizer.encode(bytes), Double(bytes.count) / 1e6)
        try measure("encode", "MB_per_s", size) { tokenizer.encode(bytes).count }
        try measure("decode", "MB_per_s", size) { try tokenizer.decode(ids).utf8.count }
        let table = TableStepModel(vocabulary: 8192, context: draws)
        let scores = try (0..<16).map { try table.append([$0]) }
        let sampler = try Sampler(SamplingConfig(topK: 40))
        try measure("sample", "tokens_per_s", Double(draws)) {
            try (0..<draws).reduce(0) { try $0 + Int(sampler.sample(logits: scores[$1 % 16], step: $1)) }
        }
        return Exit.done
    }

    /// Prints how much of a unit was done in a second.
    private static func measure(_ name: String, _ unit: String, _ amount: Double, _ work: () throws -> Int) throws {
        var (rates, results) = ([Double](), Set<Int>())
        for _ in 0...rounds {
            let start = SuspendingClock.now
            results.insert(try work())
            rates.append(amount / ((SuspendingClock.now - start) / .seconds(1)))
        }
        guard results.count == 1 else { throw UnequalRounds() }
        let ordered = rates.dropFirst().sorted()  // the first one warmed up
        let (low, middle, high) = (ordered[0], ordered[rounds / 2], ordered[rounds - 1])
        try tell(String(format: "\(name)  \(unit) %.1f  from %.1f to %.1f\n", middle, low, high).utf8)
    }

    private struct UnequalRounds: LocalizedError {
        var errorDescription: String? { "All rounds must give the same, and did not." }
    }
}
