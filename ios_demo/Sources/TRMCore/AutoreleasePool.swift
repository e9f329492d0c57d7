#if canImport(ObjectiveC)
    import ObjectiveC
#endif

/// Frees what Apple's frameworks autorelease in `body` at its end; a long loop would keep it all.
package func pooled<Result>(_ body: () throws -> Result) rethrows -> Result {
    #if canImport(ObjectiveC)
        try autoreleasepool(invoking: body)
    #else
        try body()
    #endif
}
