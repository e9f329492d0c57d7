import Foundation

enum Exit {
    static let done: Int32 = 0
    static let failure: Int32 = 1
    static let usage: Int32 = 2
    static let invalid: Int32 = 3
    static let interrupted: Int32 = 130
}

/// The reader of standard output has read enough, as `head` does.
struct ReaderLeft: Error {}

/// Writes all of it to standard output, at once.
func tell(_ bytes: some Sequence<UInt8>) throws {
    var rest = Array(bytes)[...]
    while !rest.isEmpty {
        let count = rest.withUnsafeBytes { write(STDOUT_FILENO, $0.baseAddress, $0.count) }
        if count > 0 {
            rest = rest.dropFirst(count)
        } else if errno == EPIPE {
            throw ReaderLeft()
        } else if errno != EINTR {
            throw POSIXError(POSIXErrorCode(rawValue: errno) ?? .EIO)
        }
    }
}

/// One line to standard error; that nobody reads it is no reason to stop.
func say(_ line: String) { try? FileHandle.standardError.write(contentsOf: Data("\(line)\n".utf8)) }
