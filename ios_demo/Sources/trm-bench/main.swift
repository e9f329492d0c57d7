import Foundation
import TRMBenchKit

/// Ends with what the first word names, or with a benchmark.
func command(_ words: [String]) async -> Int32 {
    do {
        if words.contains("--help") || words.contains("-h") {
            print(words.first == "generate" ? GenerateCommand.help : BenchOptions.help)
            return Exit.done
        }
        switch words.first {
        case "generate": return try await GenerateCommand.run(Array(words.dropFirst()))
        case "bench": return try await BenchCommand.run(Array(words.dropFirst()))
        default: return try await BenchCommand.run(words)
        }
    } catch let error as UsageError {
        say("trm-bench: error: \(error.reason)")
        return Exit.usage
    } catch BenchError.plan(let reason) {  // what only the model can tell
        say("trm-bench: error: \(reason)")
        return Exit.usage
    } catch {
        say("trm-bench: error: \(error.localizedDescription)")
        return Exit.failure
    }
}

enum Exit {
    static let done: Int32 = 0
    static let failure: Int32 = 1
    static let usage: Int32 = 2
    static let invalid: Int32 = 3
}

/// One line to stderr.
func say(_ line: String) { FileHandle.standardError.write(Data("\(line)\n".utf8)) }

exit(await command(Array(CommandLine.arguments.dropFirst())))
