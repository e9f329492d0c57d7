import Foundation
import TRMBenchKit
import TRMCore

/// Ends with what the first word names, or with a benchmark.
func command(_ words: [String]) async -> Int32 {
    do {
        if words.contains("--help") || words.contains("-h") {
            let help = ["generate": GenerateOptions.help, "speed": SpeedCommand.help]
            try tell("\(help[words.first ?? ""] ?? BenchOptions.help)\n".utf8)
            return Exit.done
        }
        switch words.first {
        case "generate": return try await GenerateCommand.run(Array(words.dropFirst()))
        case "speed": return try SpeedCommand.run(Array(words.dropFirst()))
        case "bench": return try await BenchCommand.run(Array(words.dropFirst()))
        default: return try await BenchCommand.run(words)
        }
    } catch is ReaderLeft {
        return Exit.done
    } catch BenchError.plan(let reason) {  // what only the model can tell
        say("trm-bench: error: \(reason)")
        return Exit.usage
    } catch {
        say("trm-bench: error: \(error.localizedDescription)")
        return error is UsageError || error is GenerationError || error is TokenizerError ? Exit.usage : Exit.failure
    }
}

signal(SIGPIPE, SIG_IGN)  // a closed pipe is told by write
exit(await command(Array(CommandLine.arguments.dropFirst())))
