#include "shared/attestation/simulated.hpp"
#include "shared/crypto/hash.hpp"
#include "shared/crypto/hex.hpp"

// What a simulated machine measures: upstream's formulas over stand-ins for the registers that only hardware has.
namespace dstack::attestation
{

namespace
{

using crypto::append;
using crypto::Bytes;
using crypto::Bytes48;
using crypto::View;
using crypto::view;

constexpr std::uint32_t runtime_event = 0x08000001;

void append_number(Bytes& out, std::uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; ++i) { out.push_back(static_cast<std::uint8_t>(value >> (8 * i))); }
}

/// dstack-protocol.md H.2, digest version 1.
void extend(Bytes48& rtmr, std::string_view name, View payload)
{
    Bytes event;
    append_number(event, runtime_event, 4);
    append(event, view(":"));
    append(event, view(name));
    append(event, view(":"));
    append(event, payload);
    Bytes both = crypto::copy(rtmr);
    append(both, crypto::sha384(event));
    rtmr = crypto::sha384(both);
}

Bytes48 stand_in(std::string_view name, View content)
{
    auto input = crypto::copy(view("dstack-simulated:"));
    append(input, view(name));
    append(input, view(":"));
    append(input, content);
    return crypto::sha384(input);
}

/// Claims are checked before they come here; what is no hex measures as nothing.
Bytes bytes_of(std::string_view hex)
{
    auto bytes = crypto::from_hex(hex);
    return bytes ? std::move(*bytes) : Bytes{};
}

} // namespace

std::string make_instance_id(View seed, View app_id)
{
    auto input = crypto::copy(seed);
    append(input, app_id);
    return crypto::to_hex(View{crypto::sha256(input)}.first(20));
}

BootInfo boot_info_of(const Claims& claims, const Bytes32& host_public)
{
    const auto image = bytes_of(claims.os_image_hash);
    Bytes shape;
    append_number(shape, claims.vcpu, 4);
    append_number(shape, claims.memory_mib, 8);
    Bytes48 rtmr3{};
    extend(rtmr3, "system-preparing", {});
    extend(rtmr3, "app-id", bytes_of(claims.app_id));
    extend(rtmr3, "compose-hash", bytes_of(claims.compose_hash));
    extend(rtmr3, "instance-id", bytes_of(claims.instance_id));
    extend(rtmr3, "boot-mr-done", {});

    Bytes registers;
    append(registers, stand_in("mrtd", image));
    append(registers, stand_in("rtmr0", shape));
    append(registers, stand_in("rtmr1", image));
    append(registers, stand_in("rtmr2", image));
    auto system = registers;
    append(system, Bytes32{}); // the key provider is not known yet when keys are asked for (H.4)
    append(registers, rtmr3);

    auto device = crypto::copy(view("dstack-simulated:device:"));
    append(device, host_public);

    BootInfo out;
    out.tee_variant = "dstack-tdx";
    out.mr_aggregated = crypto::to_hex(crypto::sha256(registers));
    out.os_image_hash = claims.os_image_hash;
    out.mr_system = crypto::to_hex(crypto::sha256(system));
    out.app_id = claims.app_id;
    out.compose_hash = claims.compose_hash;
    out.instance_id = claims.instance_id;
    out.device_id = crypto::to_hex(crypto::sha256(device));
    out.tcb_status = "UpToDate";
    return out;
}

} // namespace dstack::attestation
