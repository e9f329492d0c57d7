import Foundation

// A stand-in for the part of Core ML that the adapter uses, for systems that have none. It proves our logic, not
// Apple's API: that the signatures are Apple's shows only a build on a Mac. Each declaration names the page of
// developer.apple.com that it follows.

/// documentation/coreml/mlmultiarraydatatype
public enum MLMultiArrayDataType: Int, Sendable {
    case double = 0x10040
    case float32 = 0x10020
    case float16 = 0x10010
    case int32 = 0x20020

    var bytes: Int { (rawValue & 0xff) / 8 }
}

/// documentation/coreml/mlmultiarray
public final class MLMultiArray {
    /// documentation/coreml/mlmultiarray/shape
    public let shape: [NSNumber]
    /// documentation/coreml/mlmultiarray/strides
    public let strides: [NSNumber]
    /// documentation/coreml/mlmultiarray/datatype
    public let dataType: MLMultiArrayDataType
    private let storage: UnsafeMutableRawBufferPointer
    private let steps: [Int]

    /// documentation/coreml/mlmultiarray/init(shape:datatype:)
    public convenience init(shape: [NSNumber], dataType: MLMultiArrayDataType) throws {
        let sizes = shape.map(\.intValue)
        let strides = sizes.indices.map { sizes[($0 + 1)...].reduce(1, *) }
        self.init(shape: sizes, dataType: dataType, strides: strides)
    }

    /// documentation/coreml/mlmultiarray/init(shape:datatype:strides:)
    public convenience init(shape: [Int], dataType: MLMultiArrayDataType, strides: [Int]) {
        self.init(shape: shape, dataType: dataType, strides: strides, told: strides)
    }

    /// - Parameter told: what `strides` says, which has been known to be wrong.
    init(shape: [Int], dataType: MLMultiArrayDataType, strides: [Int], told: [Int]) {
        self.shape = shape.map { NSNumber(value: $0) }
        self.strides = told.map { NSNumber(value: $0) }
        self.dataType = dataType
        steps = strides
        let count = shape.contains(0) ? 0 : zip(shape, strides).reduce(1) { $0 + ($1.0 - 1) * $1.1 }
        storage = .allocate(byteCount: count * dataType.bytes, alignment: 16)
        storage.initializeMemory(as: UInt8.self, repeating: 0xff)  // whole numbers of -1 and floats that are none
    }

    deinit { storage.deallocate() }

    var isZero: Bool { storage.allSatisfy { $0 == 0 } }

    func zero() { storage.initializeMemory(as: UInt8.self, repeating: 0) }

    /// documentation/coreml/mlmultiarray/withunsafebytes(_:)
    public func withUnsafeBytes<R>(_ body: (UnsafeRawBufferPointer) throws -> R) rethrows -> R {
        try body(UnsafeRawBufferPointer(storage))
    }

    /// documentation/coreml/mlmultiarray/withunsafemutablebytes(_:)
    public func withUnsafeMutableBytes<R>(_ body: (UnsafeMutableRawBufferPointer, [Int]) throws -> R) rethrows -> R {
        try body(storage, strides.map(\.intValue))
    }

    private func offset(_ index: [Int]) -> Int {
        zip(index, steps).reduce(0) { $0 + $1.0 * $1.1 } * dataType.bytes
    }

    func integer(_ index: Int...) -> Int {
        Int(storage.load(fromByteOffset: offset(index), as: Int32.self))
    }

    func number(_ index: Int...) -> Float {
        dataType == .float16
            ? Float(storage.load(fromByteOffset: offset(index), as: Float16.self))
            : storage.load(fromByteOffset: offset(index), as: Float.self)
    }

    func set(_ value: Float, _ index: Int...) {
        if dataType == .float16 {
            storage.storeBytes(of: Float16(value), toByteOffset: offset(index), as: Float16.self)
        } else {
            storage.storeBytes(of: value, toByteOffset: offset(index), as: Float.self)
        }
    }
}

/// documentation/coreml/mlfeaturevalue
public final class MLFeatureValue {
    /// documentation/coreml/mlfeaturevalue/multiarrayvalue
    public let multiArrayValue: MLMultiArray?

    /// documentation/coreml/mlfeaturevalue/init(multiarray:)
    public init(multiArray value: MLMultiArray) { multiArrayValue = value }
}

/// documentation/coreml/mlfeatureprovider
public protocol MLFeatureProvider {
    /// documentation/coreml/mlfeatureprovider/featurenames
    var featureNames: Set<String> { get }
    /// documentation/coreml/mlfeatureprovider/featurevalue(for:)
    func featureValue(for featureName: String) -> MLFeatureValue?
}

/// documentation/coreml/mldictionaryfeatureprovider
public final class MLDictionaryFeatureProvider: MLFeatureProvider {
    private let values: [String: MLFeatureValue]

    /// documentation/coreml/mldictionaryfeatureprovider/init(dictionary:)
    public init(dictionary: [String: Any]) throws {
        values = try dictionary.mapValues { value in
            guard let value = value as? MLFeatureValue else { throw StubError(reason: "no feature value: \(value)") }
            return value
        }
    }

    public var featureNames: Set<String> { Set(values.keys) }
    public func featureValue(for featureName: String) -> MLFeatureValue? { values[featureName] }
}

/// What Core ML throws as an `NSError`.
public struct StubError: Error, LocalizedError {
    public let reason: String
    public init(reason: String) { self.reason = reason }
    public var errorDescription: String? { reason }
}
