import Foundation

/// The words of a command line, by flag: `--depth 2`, `--depth=2`, `-p 128`, `--list-functions`.
public struct Arguments {
    private var values: [String: String] = [:]

    /// - Parameters:
    ///   - words: without the program.
    ///   - valued: flags that take a value.
    ///   - plain: flags that take none.
    /// - Throws: `UsageError`.
    public init(_ words: [String], valued: Set<String>, plain: Set<String>) throws {
        var rest = words[...]
        while let word = rest.popFirst() {
            let parts = word.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
            let flag = parts[0]
            guard valued.contains(flag) || plain.contains(flag) else {
                throw UsageError("unknown argument \(flag.debugDescription); see --help")
            }
            guard values[flag] == nil else { throw UsageError("\(flag) must be given once") }
            if plain.contains(flag) {
                guard parts.count == 1 else {
                    throw UsageError("\(flag) takes no value, got \(word.debugDescription)")
                }
                values[flag] = ""
            } else {
                guard let value = parts.count == 2 ? parts[1] : rest.popFirst() else {
                    throw UsageError("\(flag) must have a value after it")
                }
                values[flag] = value
            }
        }
    }

    public func has(_ flag: String) -> Bool { values[flag] != nil }

    public func text(_ flag: String) throws -> String? {
        guard values[flag] != "" else { throw UsageError("\(flag) must not be empty") }
        return values[flag]
    }

    /// A number of any kind that Swift reads from text; nil if the flag was not given.
    public func number<Number: LosslessStringConvertible>(_ flag: String, as kind: String) throws -> Number? {
        guard let word = values[flag] else { return nil }
        guard let number = Number(word) else {
            throw UsageError("\(flag) must be \(kind), got \(word.debugDescription)")
        }
        return number
    }
}

/// A command that was asked wrongly.
public struct UsageError: Error, Equatable, LocalizedError {
    public let reason: String

    public init(_ reason: String) { self.reason = reason }

    public var errorDescription: String? { reason }
}
