import Foundation

/// The plain files of a folder, found without following a link.
struct FileTree {
    static let deepest = 16
    static let block = 1 << 20

    /// Bytes of each file, by its path in the folder.
    private(set) var files: [String: Int] = [:]

    /// - Parameter most: a folder of more files and folders is refused before all of them are listed.
    init(_ folder: URL, most: Int) throws(ImportError) {
        var seen = 0
        var waiting = [(path: "", depth: 0)]
        while let next = waiting.popLast() {
            guard next.depth < Self.deepest else { throw .tooManyFiles(most: most) }
            for name in try Self.names(folder.appendingPathComponent(next.path)) where name != ".DS_Store" {
                let path = next.path.isEmpty ? name : "\(next.path)/\(name)"
                seen += 1
                guard seen <= most else { throw .tooManyFiles(most: most) }
                guard path.utf8.allSatisfy({ $0 < 0x80 }) else { throw .unlisted(path) }
                switch try Self.kind(folder, path) {
                case .folder: waiting.append((path, next.depth + 1))
                case .file(let bytes): files[path] = bytes
                }
            }
        }
    }

    enum Kind: Equatable {
        case folder
        case file(bytes: Int)
    }

    /// What lies at a path, itself and not what it may link to.
    static func kind(_ folder: URL, _ path: String) throws(ImportError) -> Kind {
        let place = path.isEmpty ? folder.path : folder.appendingPathComponent(path).path
        let found: [FileAttributeKey: Any]
        do { found = try FileManager.default.attributesOfItem(atPath: place) } catch {
            throw .unreadable(path, reason: error.localizedDescription)
        }
        switch found[.type] as? FileAttributeType {
        case .typeDirectory?: return .folder
        case .typeRegular?: return .file(bytes: (found[.size] as? NSNumber)?.intValue ?? 0)
        case .typeSymbolicLink?: throw .link(path)
        default: throw .special(path)
        }
    }

    /// Gives the bytes of a file, a block at a time, and fails if there are more than `most`.
    static func read(
        _ folder: URL, _ path: String, most: Int, _ take: ([UInt8]) throws -> Void
    ) throws {
        guard case .file = try kind(folder, path) else { throw ImportError.special(path) }
        let handle: FileHandle
        do { handle = try FileHandle(forReadingFrom: folder.appendingPathComponent(path)) } catch {
            throw ImportError.unreadable(path, reason: error.localizedDescription)
        }
        defer { try? handle.close() }
        var total = 0
        while true {
            try Task.checkCancellation()
            let more = try pooled {
                let part = [UInt8](try handle.read(upToCount: block) ?? Data())
                total += part.count
                guard total <= most else { throw ImportError.wrongSize(path, bytes: total, wanted: most) }
                if !part.isEmpty { try take(part) }
                return !part.isEmpty
            }
            if !more { return }
        }
    }

    private static func names(_ folder: URL) throws(ImportError) -> [String] {
        do { return try FileManager.default.contentsOfDirectory(atPath: folder.path) } catch {
            throw .unreadable(folder.lastPathComponent, reason: error.localizedDescription)
        }
    }
}
