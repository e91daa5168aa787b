#include "bus/schema/catalog.hpp"
#include "bus/schema/all.hpp"

namespace dstack::schema
{

namespace
{
template <EventStruct E>
EventEntry entry()
{
    return {E::type, [](Fields& fields) { E{}.describe(fields); }};
}
template <CommandStruct C>
CommandEntry entry()
{
    return {C::type, [](Fields& fields) { C{}.describe(fields); },
            [](Fields& fields) { typename C::Reply{}.describe(fields); }};
}
} // namespace

const std::vector<EventEntry>& events()
{
    static const std::vector<EventEntry> all{
        entry<BusStarted>(),
        entry<BusPeerRefused>(),
        entry<BusTokenCreated>(),
        entry<BusTokenRevoked>(),
        entry<BusTokenExpired>(),
        entry<ServiceUp>(),
        entry<ServiceDown>(),
        entry<BusGap>(),
        entry<BusJournalRecovered>(),
        entry<CommandFinished>(),
        entry<LeaseGranted>(),
        entry<LeaseReleased>(),
        entry<LeaseRefused>(),
        entry<LeaseConflict>(),
        entry<LeaseLeaked>(),
        entry<LeaseDrift>(),
        entry<AuthDecided>(),
        entry<AuthPolicyChanged>(),
        entry<AuthLedgerChanged>(),
        entry<KeyReleased>(),
        entry<KeyRefused>(),
        entry<KmsBootstrapped>(),
        entry<KmsStarting>(),
        entry<KmsReady>(),
        entry<KmsUnready>(),
        entry<KmsFailed>(),
        entry<KmsIdentityPinned>(),
        entry<KmsIdentityChanged>(),
        entry<VmCreated>(),
        entry<VmStarted>(),
        entry<VmAdopted>(),
        entry<VmBootProgress>(),
        entry<VmBootError>(),
        entry<VmReady>(),
        entry<VmStopping>(),
        entry<VmStopped>(),
        entry<VmExited>(),
        entry<VmRemoved>(),
        entry<VmNotifyRefused>(),
        entry<DeployStarted>(),
        entry<DeployStep>(),
        entry<DeploySucceeded>(),
        entry<DeployFailed>(),
        entry<AppStateChanged>(),
        entry<LogGap>(),
    };
    return all;
}

const std::vector<CommandEntry>& commands()
{
    static const std::vector<CommandEntry> all{
        entry<BusServices>(),
        entry<BusCreateToken>(),
        entry<BusListTokens>(),
        entry<BusRevokeToken>(),
        entry<BusStats>(),
        entry<LeaseReserve>(),
        entry<LeaseBind>(),
        entry<LeaseRelease>(),
        entry<LeaseList>(),
        entry<LeaseHost>(),
        entry<LeaseExplain>(),
        entry<AuthAllowApp>(),
        entry<AuthRevokeApp>(),
        entry<AuthAllowImage>(),
        entry<AuthRevokeImage>(),
        entry<AuthSetPolicy>(),
        entry<AuthPolicy>(),
        entry<AuthDecisions>(),
        entry<AuthAudit>(),
        entry<AuthExplain>(),
        entry<AuthTestPolicy>(),
        entry<KmsStatus>(),
        entry<DeployCreate>(),
        entry<AppList>(),
        entry<AppInfo>(),
        entry<AppStop>(),
        entry<AppStart>(),
        entry<AppRemove>(),
        entry<DeployStatus>(),
        entry<LogsQuery>(),
    };
    return all;
}

const EventType* find_event(std::string_view name)
{
    for (const EventEntry& entry : events())
    {
        if (entry.type.name == name) { return &entry.type; }
    }
    return nullptr;
}

const CommandType* find_command(std::string_view name)
{
    for (const CommandEntry& entry : commands())
    {
        if (entry.type.name == name) { return &entry.type; }
    }
    return nullptr;
}

bool service_may_send(const CommandType& command, std::string_view service)
{
    std::string_view rest = command.services;
    while (!rest.empty())
    {
        const auto end = rest.find(' ');
        if (rest.substr(0, end) == service) { return true; }
        rest = end == std::string_view::npos ? std::string_view{} : rest.substr(end + 1);
    }
    return false;
}

} // namespace dstack::schema
