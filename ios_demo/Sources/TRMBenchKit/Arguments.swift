import Foundation

/// The words of a command line, by flag: `--depth 2`, `--depth=2`, `-p 128`, `--list-functions`.
public struct Arguments {
    private var values: [String: [String]] = [:]

    /// - Parameters:
    ///   - words: without the program.
    ///   - valued: flags that take a value.
    ///   - listed: flags that take a value, and may be given again for one more.
    ///   - plain: flags that take none.
    /// - Throws: `UsageError`.
    public init(_ words: [String], valued: Set<String>, listed: Set<String> = [], plain: Set<String>) throws {
        var rest = words[...]
        while let word = rest.popFirst() {
            let parts = word.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
            let flag = parts[0]
            guard valued.union(listed).union(plain).contains(flag) else {
                throw UsageError("unknown argument \(flag.debugDescription); see --help")
            }
            guard values[flag] == nil || listed.contains(flag) else {
                throw UsageError("\(flag) must be given once")
            }
            if plain.contains(flag) {
                guard parts.count == 1 else {
                    throw UsageError("\(flag) takes no value, got \(word.debugDescription)")
                }
                values[flag] = []
            } else {
                guard let value = parts.count == 2 ? parts[1] : rest.popFirst() else {
                    throw UsageError("\(flag) must have a value after it")
                }
                values[flag, default: []].append(value)
            }
        }
    }

    /// The flags that were given.
    public var flags: Set<String> { Set(values.keys) }

    /// Every value of a flag.
    public func texts(_ flag: String) -> [String] { values[flag] ?? [] }

    /// A value that names something.
    public func name(_ flag: String) throws -> String? {
        let name = texts(flag).first
        guard name != "" else { throw UsageError("\(flag) must not be empty") }
        return name
    }

    /// A number of any kind that Swift reads from text, in decimal digits; nil if the flag was not given.
    public func number<Number: LosslessStringConvertible>(_ flag: String, as kind: String) throws -> Number? {
        guard let word = texts(flag).first else { return nil }
        guard word.utf8.allSatisfy(Self.digits.contains), let number = Number(word) else {
            throw UsageError("\(flag) must be \(kind), got \(word.debugDescription)")
        }
        return number
    }

    private static let digits = Set("0123456789+-.eE".utf8)
}

/// A command that was asked wrongly.
public struct UsageError: Error, Equatable, LocalizedError {
    public let reason: String

    public init(_ reason: String) { self.reason = reason }

    public var errorDescription: String? { reason }
}
